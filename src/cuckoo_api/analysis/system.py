"""The figures of ``/cuckoo/status``."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from cuckoo_api import __version__
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Status

PROTOCOL_VERSION = 1


class MachineCounts(msgspec.Struct, frozen=True):
    """``available``: neither leased nor in quarantine."""

    total: int
    available: int


class DiskSpace(msgspec.Struct, frozen=True):
    """Bytes of the file system that holds a folder."""

    total: int
    free: int
    used: int


class SystemStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The server and its host, as Cuckoo 2's status answers."""

    version: str
    protocol_version: int
    hostname: str
    machines: MachineCounts
    paused: str
    """Why no analysis starts, for want of room; empty when they do."""
    tasks: dict[str, int]
    """``total`` and the number of tasks in each state."""
    diskspace: dict[str, DiskSpace]
    """For ``analyses``, ``binaries`` and ``temporary``."""
    cpuload: tuple[float, float, float]
    """Mean run-queue length over 1, 5 and 15 minutes."""
    cpu_count: int
    memory: float
    """Per cent in use."""
    memavail: int
    """KiB."""
    memtotal: int
    """KiB."""
    processes: dict[str, int]
    """Names and pids of this server's processes."""


def system_status(
    storage: Path,
    temporary: Path,
    tasks: Mapping[Status, int],
    machines: Sequence[Machine],
    processes: Mapping[str, int],
    *,
    paused: str = "",
) -> SystemStatus:
    """Measure the host now. Reads a few files of /proc: microseconds, no disk."""
    memory = psutil.virtual_memory()
    return SystemStatus(
        version=__version__,
        protocol_version=PROTOCOL_VERSION,
        hostname=socket.gethostname(),
        machines=MachineCounts(
            total=len(machines),
            available=sum(not m.locked and m.quarantine is None for m in machines),
        ),
        paused=paused,
        tasks={
            "total": sum(tasks.values()),
            **{status.value: tasks.get(status, 0) for status in Status},
        },
        diskspace={
            "analyses": _disk_space(storage / "analyses"),
            "binaries": _disk_space(storage / "binaries"),
            "temporary": _disk_space(temporary),
        },
        cpuload=os.getloadavg(),
        cpu_count=os.cpu_count() or 1,
        memory=memory.percent,
        memavail=memory.available // 1024,
        memtotal=memory.total // 1024,
        processes=dict(processes),
    )


def free_bytes(folder: Path) -> int:
    """What an unprivileged writer may still write to the folder's file system."""
    return shutil.disk_usage(folder).free


def _disk_space(folder: Path) -> DiskSpace:
    usage = shutil.disk_usage(folder)
    return DiskSpace(total=usage.total, free=usage.free, used=usage.used)
