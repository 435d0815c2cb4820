"""Whole analyses: the real server, the real libvirtd, its HTTP API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from libvirtkit import ADDRESSES, BRIDGE, GATEWAY, SNAPSHOT, Lab, connected
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
async def site(lab: Lab, tmp_path: Path) -> AsyncIterator[Site]:
    """A running server on the lab's machines."""
    cwd = tmp_path / "cwd"
    init_cwd(cwd, list(load_plugins().values()))
    configure(
        cwd,
        "cuckoo",
        {"cuckoo.machinery": "kvm", "cuckoo.freespace": "64", "resultserver.ip": GATEWAY},
    )
    configure(cwd, "routing", {"routing.route": "none"})
    kvm = {"dsn": lab.libvirtd.uri, "interface": BRIDGE, "machines": ", ".join(ADDRESSES)}
    configure(cwd, "kvm", {f"kvm.{key}": value for key, value in kvm.items()})
    with (cwd / "conf" / "kvm.conf").open("a") as file:
        for label, ip in ADDRESSES.items():
            file.write(MACHINE.format(label=label, ip=ip, snapshot=SNAPSHOT))
    made = Site(cwd, Here())  # type: ignore[arg-type]  # all of a namespace that a site needs
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


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
