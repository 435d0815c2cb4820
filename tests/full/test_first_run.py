"""The first run, as a new user sees it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from serverkit import Namespace, place_guest

AS_A_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
"""Takes every right over the host away, and lets the files of the one who runs this be read."""


@pytest.mark.parametrize("prefix", [(), AS_A_USER], ids=["root", "user"])
def test_the_demo_shows_what_the_sample_did(
    namespace: Namespace, tmp_path: Path, prefix: tuple[str, ...]
) -> None:
    cwd = tmp_path / "demo"
    place_guest(cwd)
    demo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd), "demo"]
    command = namespace.inside(*prefix, *demo)
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    for words in (
        "score",
        "Plants a cron job",
        "uname -a",
        "/etc/cron.d/demo-updater",
        "/tmp/demo-temporary.dat",
        "updates.demo.test -> 192.168.55.1",
        "GET http://updates.demo.test/payload -> 200",
        "Screenshots: ",
        "Dumps of processes: ",
        "/tasks/report/1",
        "storage/analyses/1/reports/report.html",
    ):
        assert words in first.stdout
    if not prefix:  # the guest is there, and the demo goes on with it
        begin = time.monotonic()
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 0, second.stdout + second.stderr
        assert "/tasks/report/2" in second.stdout
        assert time.monotonic() - begin < 60
    assert namespace.pids() == []
    assert namespace.links() == set()
    assert namespace.rules() == ""


def test_the_machines_are_proven_by_a_check(
    namespace: Namespace, prepared: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cuckoo_api", "--cwd", str(prepared), "machines", "check"]
    done = subprocess.run(namespace.inside(*command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("works") == 2
