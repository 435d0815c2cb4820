"""The processes that run a machine, found by their command lines."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path


def running(uuid: str) -> list[int]:
    """The ids of the processes that run the machine.

    VBoxSVC starts ``VBoxHeadless … --startvm UUID …``, or VirtualBoxVM for one in a window.
    """
    ids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in ids if _runs(pid, uuid)]


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


def _runs(pid: int, uuid: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return (b"--startvm", uuid.encode()) in itertools.pairwise(words)
