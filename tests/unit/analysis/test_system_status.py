"""The figures of /cuckoo/status are the host's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import pytest

from cuckoo_api import __version__
from cuckoo_api.analysis.system import SystemStatus, free_bytes, system_status
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Status


def machine(name: str, *, locked: bool = False, quarantine: str | None = None) -> Machine:
    return Machine(
        id=1, name=name, label=name, manager="fake", ip="192.0.2.1", platform="linux",
        resultserver_ip="192.0.2.2", resultserver_port=2042, locked=locked, quarantine=quarantine,
    )  # fmt: skip


@pytest.fixture
def status(tmp_path: Path) -> SystemStatus:
    for name in ("analyses", "binaries"):
        (tmp_path / name).mkdir()
    machines = [machine("a"), machine("b", locked=True), machine("c", quarantine="broken")]
    counts = {Status.PENDING: 2, Status.REPORTED: 5}
    return system_status(tmp_path, tmp_path, counts, machines, {"engine": os.getpid()})


def test_machines_and_tasks_are_counted(status: SystemStatus) -> None:
    assert (status.machines.total, status.machines.available) == (3, 1)
    counted = {name: number for name, number in status.tasks.items() if number}
    assert counted == {"total": 7, "pending": 2, "reported": 5}
    assert set(status.tasks) == {"total", *Status}


def test_the_hosts_figures_are_the_hosts(status: SystemStatus) -> None:
    memory = psutil.virtual_memory()
    assert status.version == __version__
    assert status.hostname == os.uname().nodename
    assert status.cpu_count == os.cpu_count()
    assert status.memtotal == memory.total // 1024
    assert 0 < status.memavail <= status.memtotal
    assert 0 < status.memory < 100
    assert len(status.cpuload) == 3
    assert psutil.pid_exists(status.processes["engine"])


def test_the_disks_figures_are_the_disks(status: SystemStatus, tmp_path: Path) -> None:
    assert set(status.diskspace) == {"analyses", "binaries", "temporary"}
    for space in status.diskspace.values():
        assert space.total == shutil.disk_usage(tmp_path).total
        assert 0 < space.free < space.total
        assert space.used > 0


def test_room_is_what_an_ordinary_user_may_still_write(tmp_path: Path) -> None:
    numbers = os.statvfs(tmp_path)
    near = numbers.f_bavail * numbers.f_frsize
    assert free_bytes(tmp_path) == pytest.approx(near, rel=0.05)
