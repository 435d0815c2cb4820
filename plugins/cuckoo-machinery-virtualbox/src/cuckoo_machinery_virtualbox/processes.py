"""The processes that run a machine, found by their command lines."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

SERVER = b"VBoxSVC"


def running(uuid: str) -> list[int]:
    """The ids of the processes that run the machine.

    VBoxSVC starts ``VBoxHeadless … --startvm UUID …``, or VirtualBoxVM for one in a window.
    """
    return [pid for pid in _processes() if _runs(pid, uuid)]


def end_orphans(uuids: Iterable[str]) -> None:
    """Kill the processes that run these machines if there is no VBoxSVC for them.

    It lives for as long as they do, so it was killed. Out of reach of everybody they run on, and
    keep the next VBoxSVC from answering for a minute.
    """
    if any(_is_server(pid) for pid in _processes()):
        return
    for uuid in uuids:
        kill(uuid)


def kill(uuid: str) -> None:
    """Kill them all."""
    for pid in running(uuid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            handle = os.pidfd_open(pid)
            try:
                if _runs(pid, uuid):  # the id is still its own
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _runs(pid: int, uuid: str) -> bool:
    return (b"--startvm", uuid.encode()) in itertools.pairwise(_words(pid))


def _is_server(pid: int) -> bool:
    try:
        ours = Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False
    return ours and _words(pid)[0].rpartition(b"/")[2] == SERVER


def _words(pid: int) -> list[bytes]:
    """Its command line; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]
