"""Whole analyses: the real server, the real libvirtd, its HTTP API."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from libvirtkit import ADDRESSES, BRIDGE, GATEWAY, SNAPSHOT, Lab, connected, run
from serverkit import DONE, Site, configure

from cuckoo_api.fleet import load_plugins
from cuckoo_api.settings import init_cwd

MACHINE = """
[{label}]
label = {label}
platform = linux
ip = {ip}
snapshot = {snapshot}
"""
SAMPLE = b"""#!/bin/sh
echo dropped > /tmp/dropped
python3 -c 'import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("%s", 9999))'
sleep 2
"""
LONG = b"#!/bin/sh\necho begun > /tmp/begun\nsleep 7\necho ended > /tmp/ended\n"


class Here:
    """The network namespace that the tests are in already."""

    def inside(self, *command: str) -> list[str]:
        return list(command)


@pytest.fixture
def cwd(lab: Lab, tmp_path: Path) -> Path:
    """A working directory for the lab's libvirtd, without machines."""
    cwd = tmp_path / "cwd"
    init_cwd(cwd, list(load_plugins().values()))
    own = {"cuckoo.machinery": "kvm", "cuckoo.freespace": "64", "resultserver.ip": GATEWAY}
    configure(cwd, "cuckoo", own)
    configure(cwd, "routing", {"routing.route": "none"})
    configure(cwd, "kvm", {"kvm.dsn": lab.libvirtd.uri, "kvm.interface": BRIDGE})
    return cwd


@pytest.fixture
async def site(cwd: Path) -> AsyncIterator[Site]:
    """A running server on the lab's machines."""
    configure(cwd, "kvm", {"kvm.machines": ", ".join(ADDRESSES)})
    with (cwd / "conf" / "kvm.conf").open("a") as file:
        for label, ip in ADDRESSES.items():
            file.write(MACHINE.format(label=label, ip=ip, snapshot=SNAPSHOT))
    made = Site(cwd, Here())  # type: ignore[arg-type]  # all of a namespace that a site needs
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def test_machines_are_discovered_with_what_libvirt_knows_of_them(cwd: Path) -> None:
    found = run(
        sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd), "machines", "discover", "kvm"
    )
    assert "machines = one, two" in found
    for label in ADDRESSES:
        section = found[found.index(f"[{label}]") :]
        assert section.startswith(f"[{label}]\nlabel = {label}\nplatform = linux\n")
        assert SNAPSHOT in section


async def test_an_analysis_is_reported_with_all_that_libvirt_gives(site: Site, lab: Lab) -> None:
    sample = SAMPLE % GATEWAY.encode()
    report = await site.analyse(sample, "sample.sh", timeout=20, memory="yes")
    assert [d["filepath"] for d in report["dropped"]] == ["/tmp/dropped"]
    assert any("sample.sh" in p["command_line"] for p in report["behavior"]["processes"])
    assert (GATEWAY, 9999) in {(u["dst"], u["dport"]) for u in report["network"]["udp"]}
    assert report["screenshots"]
    assert report["debug"]["errors"] == []
    with (site.folder(report["info"]["id"]) / "memory.dmp").open("rb") as file:
        assert file.read(4) == b"\x7fELF"
    assert lab.libvirtd.qemus() == {}
    machine = (await site.get("/machines/view/one"))["machine"]
    assert (machine["status"], machine["locked"]) == ("poweroff", False)


async def test_a_libvirtd_killed_and_restarted_in_the_middle_costs_no_task(
    site: Site, lab: Lab
) -> None:
    task_id = await site.submit(LONG, "long.sh", timeout=40)
    await site.running(task_id)
    lab.libvirtd.kill()
    await _shown(site, "unreachable")
    await asyncio.to_thread(lab.libvirtd.start)
    task = await site.until(task_id, *DONE)
    assert task["status"] == "reported", (task, site.log[-3000:])
    report = await site.get(f"/tasks/report/{task_id}")
    assert {d["filepath"] for d in report["dropped"]} == {"/tmp/begun", "/tmp/ended"}
    await _shown(site, "poweroff", "one")
    assert lab.libvirtd.qemus() == {}


async def test_what_others_do_in_virt_manager_is_shown(site: Site, lab: Lab) -> None:
    with connected(lab.libvirtd.uri) as connection:
        domain = connection.lookupByName("two")
        domain.createWithFlags(0)
        await _shown(site, "running", "two")
        domain.suspend()
        await _shown(site, "paused", "two")
        domain.destroy()
        await _shown(site, "poweroff", "two")
        del domain


async def _shown(site: Site, state: str, *labels: str) -> None:
    """Until the API shows machines, all unless told, in a state."""
    deadline = time.monotonic() + 30
    while True:
        machines = (await site.get("/machines/list"))["machines"]
        states = {m["status"] for m in machines if not labels or m["label"] in labels}
        if states == {state}:
            return
        assert time.monotonic() < deadline, machines
        await asyncio.sleep(0.02)
