"""Fixtures: the lab, and a rooter on its host."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netkit import PATIENCE, ROUTING, Lab, Start, internet, run_rooter


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A host between guests and the internet."""
    made = internet(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A working directory with a routing.conf."""
    (tmp_path / "cwd" / "conf").mkdir(parents=True)
    (tmp_path / "cwd" / "conf" / "routing.conf").write_text(ROUTING)
    return tmp_path / "cwd"


@pytest.fixture
def start_rooter(lab: Lab, cwd: Path) -> Iterator[Start]:
    """Start ``cuckoo rooter`` on the host, with CAP_NET_ADMIN and no other right."""
    all_of_them: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started = run_rooter(lab, cwd, cwd / "rooter.log", "--socket", str(cwd / "rooter.sock"))
        all_of_them.append(started)
        return started

    yield start
    for one in all_of_them:
        if one.poll() is None:
            one.terminate()
            try:
                one.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                one.send_signal(signal.SIGABRT)  # it shows where it hangs
                one.wait(PATIENCE)
                raise AssertionError((cwd / "rooter.log").read_text()) from None


@pytest.fixture
def rooter(start_rooter: Start) -> subprocess.Popen[bytes]:
    return start_rooter()
