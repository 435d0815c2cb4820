"""Fixtures: the lab, and a rooter on its host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netkit import BRIDGE, Lab, internet, until

ROUTING = f"""
[routing]
internet = uplink
drop = yes
dns = 203.0.113.80
[rooter]
user = nobody
interfaces = {BRIDGE}
"""
Start = Callable[..., subprocess.Popen[bytes]]


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
def start_rooter(lab: Lab, cwd: Path) -> Start:
    """Start ``cuckoo rooter`` on the host, with CAP_NET_ADMIN and no other right."""

    def start() -> subprocess.Popen[bytes]:
        cuckoo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd), "rooter"]
        log = cwd / "rooter.log"
        begin = log.stat().st_size if log.exists() else 0
        started = lab.spawn(
            "host", "setpriv", "--inh-caps=-all,+net_admin", "--bounding-set=-all,+net_admin",
            "--", *cuckoo, "--socket", str(cwd / "rooter.sock"), log=log,
        )  # fmt: skip

        def ready() -> bool:
            said = log.read_text()[begin:]
            assert started.poll() is None, said
            return "The rooter listens" in said

        until(ready, "the rooter")
        return started

    return start


@pytest.fixture
def rooter(start_rooter: Start) -> subprocess.Popen[bytes]:
    return start_rooter()
