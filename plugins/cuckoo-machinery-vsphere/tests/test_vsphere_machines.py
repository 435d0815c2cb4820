"""Which machines there are, by which labels, and what is known of each."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim
from vspherekit import ONE, SNAPSHOT, TWO, Admin, Make, Simulate, Site

from cuckoo_api.machinery import (
    BackendUnavailable,
    MachineFacts,
    MachineNotFound,
    MachineState,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_machinery_vsphere.backend import VsphereBackend
from cuckoo_machinery_vsphere.operations import refuse_unreachable


def folder(admin: Admin, name: str) -> Any:
    return admin.all(vim.Datacenter)["DC0"].vmFolder.CreateFolder(name)


def move(admin: Admin, machine: Any, into: Any, name: str = "") -> None:
    admin.done(into.MoveIntoFolder_Task([machine]))
    if name:
        admin.done(machine.Rename_Task(name))


# -- labels ---------------------------------------------------------------------------------------


async def test_a_machine_has_its_name_as_label_and_may_be_called_by_its_path(
    backend: VsphereBackend,
) -> None:
    assert sorted(await backend.labels()) == [ONE, TWO]
    for label in (ONE, f"DC0/{ONE}", f"vm/{ONE}", f"DC0/vm/{ONE}", f"/DC0/vm/{ONE}", f"/DC0/{ONE}"):
        assert await backend.state(label) is MachineState.POWEROFF
    for label in (f"/{ONE}", f"DC1/{ONE}", f"0/{ONE}", ONE.lower(), "", "/"):
        with pytest.raises(MachineNotFound):
            await backend.state(label)


async def test_an_unknown_label_is_answered_with_those_near(backend: VsphereBackend) -> None:
    with pytest.raises(MachineNotFound, match=rf"no machine 'DC0_H0_VM7'; near: {ONE}, {TWO}"):
        await backend.state("DC0_H0_VM7")


async def test_a_name_that_two_machines_have_is_refused_and_the_paths_are_listed(
    make: Make, site: Site
) -> None:
    admin = site.admin
    move(admin, admin.machine(TWO), folder(admin, "prod"), ONE)
    backend = await make(site, ONE, f"prod/{ONE}")
    for call in (backend.state(ONE), backend.inspect(ONE), backend.restore_and_start(ONE, "")):
        with pytest.raises(MachineNotFound) as caught:
            await call
        assert str(caught.value) == (
            f"2 machines are called '{ONE}': DC0/{ONE}, DC0/prod/{ONE}; "
            f"say which with its path: label = DC0/{ONE}"
        )
    # the check at start-up asks for these, and is told why the first cannot be used
    assert sorted(await backend.labels()) == [ONE, f"prod/{ONE}"]
    assert await backend.state(f"prod/{ONE}") is MachineState.POWEROFF
    other = await make(site, "nothing")
    assert sorted(await other.labels()) == [f"DC0/{ONE}", f"DC0/prod/{ONE}"]


async def test_two_datacenters_and_nested_folders_are_told_apart_by_their_paths(
    make: Make, simulate: Simulate
) -> None:
    site = simulate("-datacenters", "2", "-folders", "2", "-machines", "1")
    admin = site.admin
    admin.done(admin.machine("DC1_H0_VM0").Rename_Task(ONE))
    backend = await make(site, "nothing")
    first, second = sorted(await backend.labels())
    assert (first, second) == (f"F0/DC0/F0/{ONE}", f"F1/DC1/F1/{ONE}")
    admin.snapshot_of(admin.content.searchIndex.FindByInventoryPath(f"F1/DC1/vm/F1/{ONE}"))
    assert (await backend.inspect(second)).snapshots == (SNAPSHOT,)
    assert (await backend.inspect(first)).snapshots == ()
    for label in (f"DC1/F1/{ONE}", f"/F1/DC1/vm/F1/{ONE}"):
        await backend.restore_and_start(label, SNAPSHOT)
    assert await backend.state(second) is MachineState.RUNNING
    assert await backend.state(first) is MachineState.POWEROFF


async def test_a_single_esxi_host_will_do(make: Make, simulate: Simulate) -> None:
    site = simulate("-esx")
    site.admin.snapshot("ha-host_VM0")
    backend = await make(site, "ha-host_VM0")
    assert sorted(await backend.labels()) == ["ha-host_VM0", "ha-host_VM1"]
    await backend.restore_and_start("ha-host_VM0", SNAPSHOT)
    assert await backend.state("/ha-datacenter/vm/ha-host_VM0") is MachineState.RUNNING


async def test_a_machine_that_is_renamed_is_known_by_its_new_name_at_once(
    backend: VsphereBackend, site: Site
) -> None:
    assert await backend.state(ONE) is MachineState.POWEROFF
    admin = site.admin
    first, second = admin.machine(ONE), admin.machine(TWO)
    admin.done(second.PowerOn())
    admin.done(first.Rename_Task("other"))
    with pytest.raises(MachineNotFound, match=ONE):
        await backend.power_off(ONE)
    admin.done(second.Rename_Task(ONE))
    assert await backend.state(ONE) is MachineState.RUNNING
    admin.done(second.PowerOff())
    admin.done(second.Destroy_Task())
    with pytest.raises(MachineNotFound, match=ONE):
        await backend.state(ONE)
    assert await backend.state("other") is MachineState.POWEROFF


async def test_a_template_is_not_offered_and_told_as_such(make: Make, site: Site) -> None:
    site.admin.machine(TWO).MarkAsTemplate()
    backend = await make(site, ONE)
    assert await backend.labels() == [ONE]
    [fault] = (await backend.inspect(TWO)).faults
    assert fault.startswith("it is a template")


# -- facts ----------------------------------------------------------------------------------------


async def test_snapshots_are_listed_with_the_current_one(
    backend: VsphereBackend, site: Site
) -> None:
    site.admin.snapshot(ONE, "later")
    site.admin.snapshot(ONE, "later")
    facts = await backend.inspect(ONE)
    assert sorted(facts.snapshots) == [SNAPSHOT, "later", "later"]
    assert facts.current_snapshot == "later"
    assert facts.faults == ()
    assert facts.uuid not in {"", (await backend.inspect(TWO)).uuid}
    with pytest.raises(SnapshotNotFound, match="2 snapshots are called 'later'; rename or remove"):
        await backend.restore_and_start(ONE, "later")


async def test_a_machine_without_any_snapshot_is_no_trouble(make: Make, simulate: Simulate) -> None:
    site = simulate()
    backend = await make(site)
    facts = await backend.inspect(ONE)
    assert (facts.snapshots, facts.current_snapshot, facts.faults) == ((), "", ())
    with pytest.raises(SnapshotNotFound, match=rf"{ONE} has no snapshot 'clean'; it has: none"):
        await backend.restore_and_start(ONE, SNAPSHOT)
    assert await backend.state(ONE) is MachineState.POWEROFF
    for _ in range(2):
        await backend.restore_and_start(ONE, "")
        assert await backend.state(ONE) is MachineState.RUNNING


async def test_a_missing_snapshot_is_answered_with_those_there_are(
    backend: VsphereBackend, site: Site
) -> None:
    site.admin.snapshot(ONE, "later")
    with pytest.raises(SnapshotNotFound, match="has no snapshot 'claen'; it has: clean, later"):
        await backend.restore_and_start(ONE, "claen")


async def test_the_guest_s_system_is_told(backend: VsphereBackend, site: Site) -> None:
    for guest, platform in (
        ("win98Guest", "windows"),
        ("debian4Guest", "linux"),
        ("other26xLinux64Guest", "linux"),
        ("darwin10_64Guest", "darwin"),
        ("freebsdGuest", ""),
    ):
        spec = vim.vm.ConfigSpec(guestId=guest)
        site.admin.done(site.admin.machine(ONE).ReconfigVM_Task(spec))
        assert (await backend.inspect(ONE)).platform == platform


async def test_a_disk_that_no_revert_restores_is_a_fault(
    backend: VsphereBackend, site: Site
) -> None:
    machine = site.admin.machine(ONE)
    [disk] = [
        device
        for device in machine.config.hardware.device
        if isinstance(device, vim.vm.device.VirtualDisk)
    ]
    disk.backing.diskMode = "independent_persistent"
    change = vim.vm.device.VirtualDeviceSpec(device=disk, operation="edit")
    site.admin.done(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    [fault] = (await backend.inspect(ONE)).faults
    assert fault.startswith("a revert does not restore its disk-")
    assert fault.endswith("which is independent_persistent (make it dependent)")
    with pytest.raises(WrongState, match=f"{ONE}: a revert does not restore its disk-"):
        await backend.restore_and_start(ONE, SNAPSHOT)
    assert await backend.state(ONE) is MachineState.POWEROFF


async def test_a_machine_that_waits_for_an_answer_is_told_with_the_question(
    backend: VsphereBackend, site: Site
) -> None:
    site.simulator.order("machine", ONE, fault="question")
    assert (await backend.inspect(ONE)).faults == (
        "it waits for an answer to: Did you move it, or copy it? (answer it in vSphere)",
    )


def test_a_machine_that_the_user_may_not_read_is_told_as_such() -> None:
    with pytest.raises(BackendUnavailable, match=f"{ONE}: vSphere does not tell its state"):
        refuse_unreachable(ONE, {"name": ONE})


async def test_a_machine_whose_host_is_away_is_not_taken_for_one_that_is_off(
    backend: VsphereBackend, site: Site
) -> None:
    site.simulator.order("machine", ONE, fault="disconnected")
    with pytest.raises(BackendUnavailable, match=f"{ONE} cannot be reached by vSphere: it is disc"):
        await backend.state(ONE)
    with pytest.raises(BackendUnavailable, match="it is disconnected"):
        await backend.power_off(ONE)
    facts: MachineFacts = await backend.inspect(ONE)
    assert facts.faults[0].startswith("vSphere cannot reach it: it is disconnected")
    assert await backend.state(TWO) is MachineState.POWEROFF
