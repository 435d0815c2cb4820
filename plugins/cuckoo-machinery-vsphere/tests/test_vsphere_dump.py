"""A memory dump: the whole of it, by a snapshot that never stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pyVmomi import vim
from vspherekit import ONE, SNAPSHOT, Make, Simulate, Site, snapshots

from cuckoo_api.machinery import BackendUnavailable, MachineryError, MachineState, WrongState
from cuckoo_machinery_vsphere.backend import VsphereBackend
from cuckoo_machinery_vsphere.datastore import location
from cuckoo_machinery_vsphere.operations import TEMPORARY

MEMORY_SIZE = 3 << 20


@pytest.fixture
async def running(backend: VsphereBackend, site: Site) -> AsyncIterator[VsphereBackend]:
    """A backend whose first machine runs; afterwards that has its one snapshot, and runs on."""
    await backend.restore_and_start(ONE, SNAPSHOT)
    site.simulator.calls()
    yield backend
    await backend.close()
    site.simulator.order("delay")
    assert snapshots(site.admin.machine(ONE)) == [SNAPSHOT]
    assert site.admin.machine(ONE).runtime.powerState == "poweredOn"


async def until(site: Site, method: str) -> None:
    """Wait until the simulator was asked for it."""
    while not site.simulator.calls().get(method):
        await asyncio.sleep(0.01)


async def test_memory_and_state_are_fetched_and_the_snapshot_goes(
    running: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    await running.dump_memory(ONE, tmp_path / "memory.dmp")
    memory, state = tmp_path / "memory.dmp", tmp_path / "memory.vmsn"
    assert memory.stat().st_size == MEMORY_SIZE
    # both are of one snapshot, which is none of those that there were before
    assert memory.read_bytes().rstrip(b"\0") == b"memory " + state.read_bytes()[len("state ") :]
    calls = site.simulator.calls()
    assert (calls["CreateSnapshot_Task"], calls["RemoveSnapshot_Task"]) == (1, 1)


async def test_files_are_asked_for_with_the_session_and_nothing_else(
    running: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    await running.dump_memory(ONE, tmp_path / "memory.dmp")
    gets = site.simulator.order("gets")
    assert [get.split("?")[0].rpartition(".")[2] for get in gets] == ["vmsn", "vmem"]
    for get in gets:
        assert "?dcPath=DC0&dsName=LocalDS_0 vmware_soap_session=" in get


async def test_a_machine_that_does_not_run_has_no_memory(
    backend: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    with pytest.raises(WrongState, match="poweredOff, not poweredOn"):
        await backend.dump_memory(ONE, tmp_path / "memory.dmp")
    assert "CreateSnapshot_Task" not in site.simulator.calls()


async def test_names_are_quoted(make: Make, simulate: Simulate, tmp_path: Path) -> None:
    site, name = simulate(), "mal ware #1 & 50+1?ö"
    admin = site.admin
    admin.done(admin.all(vim.Datacenter)["DC0"].Rename_Task("lab #2 & more"))
    admin.clone(ONE, name)
    admin.done(admin.machine(name).PowerOn())
    backend = await make(site, name)
    await backend.dump_memory(name, tmp_path / "memory.dmp")
    assert (tmp_path / "memory.dmp").stat().st_size == MEMORY_SIZE
    await backend.screenshot(name, tmp_path / "screen")


def test_every_sign_that_means_something_in_a_location_is_quoted() -> None:
    assert location("[s 1&2] d/a?b#c%20 +ü.vmem", "f/DC 0&x=1") == (
        "/folder/d/a%3Fb%23c%2520%20%2B%C3%BC.vmem?dcPath=f%2FDC%200%26x%3D1&dsName=s%201%262"
    )
    with pytest.raises(MachineryError, match="is not a path on a datastore"):
        location("/vmfs/volumes/x", "DC0")


async def test_a_file_that_is_not_given_out_is_told_with_what_to_do(
    running: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    site.simulator.order("http", status=403)
    with pytest.raises(MachineryError, match=r"HTTP 403\): the user needs the privileges"):
        await running.dump_memory(ONE, tmp_path / "memory.dmp")
    assert list(tmp_path.iterdir()) == []


async def test_half_a_file_is_no_dump(running: VsphereBackend, site: Site, tmp_path: Path) -> None:
    site.simulator.order("http", status=200)
    with pytest.raises(BackendUnavailable, match=f"^{ONE}: "):
        await running.dump_memory(ONE, tmp_path / "memory.dmp")
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_is_told_as_this_host_s(
    running: VsphereBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, _: opened(Path("/dev/full"), "wb", buffering=0))
    with pytest.raises(MachineryError, match=r"memory.vmsn cannot be written: No space left"):
        await running.dump_memory(ONE, tmp_path / "memory.dmp")
    assert list(tmp_path.iterdir()) == []


async def test_a_snapshot_that_cannot_be_taken_leaves_nothing(
    running: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    site.simulator.order("task", "createSnapshot", fault="FileFault")
    with pytest.raises(MachineryError, match="FileFault"):
        await running.dump_memory(ONE, tmp_path / "memory.dmp")
    assert list(tmp_path.iterdir()) == []


async def test_a_dump_that_is_given_up_while_its_snapshot_is_made_removes_it(
    running: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    site.simulator.order("delay", millis=1500)
    dumping = asyncio.create_task(running.dump_memory(ONE, tmp_path / "memory.dmp"))
    await until(site, "CreateSnapshot_Task")
    dumping.cancel()
    await asyncio.wait({dumping})
    await until(site, "RemoveSnapshot_Task")


async def test_a_dump_that_is_given_up_while_it_is_fetched_removes_its_snapshot(
    running: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    site.simulator.order("http", status=200, millis=500)
    dumping = asyncio.create_task(running.dump_memory(ONE, tmp_path / "memory.dmp"))
    while not site.simulator.order("gets"):
        await asyncio.sleep(0.01)
    dumping.cancel()
    await until(site, "RemoveSnapshot_Task")


async def test_the_next_start_removes_what_a_killed_server_has_left(
    backend: VsphereBackend, site: Site
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    machine = site.admin.machine(ONE)
    site.admin.done(machine.CreateSnapshot_Task(f"{TEMPORARY}of old", "", True, False))
    facts = await backend.inspect(ONE)
    assert (facts.snapshots, facts.current_snapshot) == ((SNAPSHOT,), SNAPSHOT)
    # the current one is the sample's machine: going back to it would be no revert at all
    await backend.restore_and_start(ONE, "")
    assert snapshots(machine) == [SNAPSHOT]
    assert await backend.state(ONE) is MachineState.RUNNING
