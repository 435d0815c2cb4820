"""One engine for each working directory."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuckoo_api.model.errors import ConfigError, NotFound, Unavailable

NAME = ".engine.lock"
SERVER = "server"
LOCKS = Path("/proc/locks")


@contextmanager
def engine_lock(
    cwd: Path, refusal: str = "another server is already running", *, is_server: bool = False
) -> Iterator[None]:
    """Hold the directory; ConfigError with the holder's pid when another process does.

    Of a server the file says that it is one: a signal that it takes would end a command.

    The kernel drops the lock with the process, however it ends: the file may stay.
    """
    handle = os.open(cwd / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _words(handle)[0]
            raise ConfigError([f"{refusal} on {cwd} (pid {pid})"]) from None
        os.ftruncate(handle, 0)
        role = SERVER if is_server else ""
        os.pwrite(handle, f"{os.getpid()} {role}".strip().encode() + b"\n", 0)
        yield
    finally:
        os.close(handle)


def ask_to_reload(cwd: Path) -> int:
    """Send SIGHUP to the server that works in the directory; its pid. NotFound where none does."""
    nobody = NotFound(f"no server with an engine runs on {cwd}")
    try:
        handle = os.open(cwd / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise nobody from None
    try:
        if not _is_held(handle):
            raise nobody
        pid, role = _words(handle)
        if role != SERVER:
            raise nobody
        process = os.pidfd_open(int(pid))
        try:
            if not _is_held(handle):  # it ended, and its number may be another's
                raise nobody
            signal.pidfd_send_signal(process, signal.SIGHUP)
        finally:
            os.close(process)
    except (ProcessLookupError, ValueError):
        raise nobody from None
    except PermissionError as exc:
        raise Unavailable(f"the server on {cwd} is another user's") from exc
    finally:
        os.close(handle)
    return int(pid)


def engine_pid(cwd: Path) -> int | None:
    """The process of the directory's engine; None where none runs.

    The lock is not tried: an engine that starts at this moment would be refused it.
    """
    try:
        with (cwd / NAME).open("rb") as file:
            pid, role = _words(file.fileno())
            inode = os.fstat(file.fileno()).st_ino
        locks = [line.split() for line in LOCKS.read_text().splitlines()]
    except OSError:
        return None
    is_held = any(
        kind == "FLOCK" and holder == pid and where.endswith(f":{inode}")
        for _, kind, _, _, holder, where, *_ in locks
    )
    return int(pid) if role == SERVER and is_held else None


def _words(handle: int) -> tuple[str, str]:
    """The holder's pid and role, as the file says them."""
    text = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
    pid, _, role = text.partition(" ")
    return pid or "unknown", role


def _is_held(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(handle, fcntl.LOCK_UN)
    return False
