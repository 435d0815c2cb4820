"""One engine for each working directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuckoo_api.model.errors import ConfigError

NAME = ".engine.lock"


@contextmanager
def engine_lock(cwd: Path, refusal: str = "another server is already running") -> Iterator[None]:
    """Hold the directory; ConfigError with the holder's pid when another process does.

    The kernel drops the lock with the process, however it ends: the file may stay.
    """
    handle = os.open(cwd / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError([f"{refusal} on {cwd} (pid {pid})"]) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
