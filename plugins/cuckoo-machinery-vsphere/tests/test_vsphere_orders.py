"""What is ordered: each order once, to its end, with the server's own words when it fails."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from vspherekit import ONE, SNAPSHOT, TWO, Make, Simulate, Site, snapshots

from cuckoo_api.machinery import (
    MachineryError,
    MachineState,
    NotSupported,
    OperationTimedOut,
    WrongState,
)
from cuckoo_machinery_vsphere.backend import VsphereBackend

RUNNING, OFF = MachineState.RUNNING, MachineState.POWEROFF


# -- power ----------------------------------------------------------------------------------------


async def test_a_revert_to_a_running_machine_needs_no_power_on(
    backend: VsphereBackend, site: Site
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    assert await backend.state(ONE) is RUNNING
    calls = site.simulator.calls()
    assert calls["RevertToSnapshot_Task"] == 1
    assert calls.keys().isdisjoint({"PowerOnVM_Task", "PowerOffVM_Task"})


async def test_a_revert_that_leaves_the_machine_off_is_followed_by_one_power_on(
    backend: VsphereBackend, site: Site
) -> None:
    site.admin.snapshot(ONE, "off", running=False)
    site.simulator.calls()
    await backend.restore_and_start(ONE, "off")
    assert await backend.state(ONE) is RUNNING
    calls = site.simulator.calls()
    assert (calls["RevertToSnapshot_Task"], calls["PowerOnVM_Task"]) == (1, 1)


async def test_a_machine_that_is_off_already_is_not_ordered_off(
    backend: VsphereBackend, site: Site
) -> None:
    for _ in range(3):
        await backend.power_off(ONE)
    assert "PowerOffVM_Task" not in site.simulator.calls()


async def test_somebody_else_may_be_quicker(backend: VsphereBackend, site: Site) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    site.simulator.order("call", "PowerOffVM_Task", millis=300)
    machine = site.admin.machine(ONE)
    stopping = asyncio.create_task(backend.power_off(ONE))
    while not site.simulator.calls().get("PowerOffVM_Task"):
        await asyncio.sleep(0.01)
    site.simulator.order("call", "PowerOffVM_Task", times=-1)
    await asyncio.to_thread(lambda: site.admin.done(machine.PowerOff()))
    await stopping
    assert await backend.state(ONE) is OFF


async def test_a_suspended_machine_is_paused_and_can_be_used_again(
    backend: VsphereBackend, site: Site
) -> None:
    machine = site.admin.machine(ONE)
    for use in (backend.power_off(ONE), backend.restore_and_start(ONE, SNAPSHOT)):
        if await backend.state(ONE) is OFF:
            site.admin.done(machine.PowerOn())
        site.admin.done(machine.Suspend())
        assert await backend.state(ONE) is MachineState.PAUSED
        with pytest.raises(WrongState, match="suspended, not poweredOn"):
            await backend.reboot(ONE)
        await use
    assert await backend.state(ONE) is RUNNING


async def test_a_machine_is_suspended_once_and_goes_on(
    backend: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    await backend.pause(ONE)
    await backend.pause(ONE)
    for call in (backend.screenshot, backend.dump_memory):
        with pytest.raises(WrongState, match="suspended, not poweredOn"):
            await call(ONE, tmp_path / "nothing")
    await backend.resume(ONE)
    assert await backend.state(ONE) is RUNNING
    assert site.simulator.calls()["SuspendVM_Task"] == 1


async def test_a_reset_is_one_order(backend: VsphereBackend, site: Site) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    await backend.reboot(ONE)
    assert await backend.state(ONE) is RUNNING
    assert site.simulator.calls()["ResetVM_Task"] == 1


async def test_a_new_snapshot_replaces_the_old_one_when_it_stands(
    backend: VsphereBackend, site: Site
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    site.simulator.order("task", "createSnapshot", fault="FileFault", times=1)
    with pytest.raises(MachineryError):
        await backend.take_snapshot(ONE, SNAPSHOT)
    assert snapshots(site.admin.machine(ONE)) == [SNAPSHOT]
    await backend.take_snapshot(ONE, SNAPSHOT)
    await backend.take_snapshot(ONE, "second")
    assert snapshots(site.admin.machine(ONE)) == [SNAPSHOT, "second"]


# -- tasks ----------------------------------------------------------------------------------------


async def test_the_fault_of_a_task_is_told_in_one_line_with_its_name(
    backend: VsphereBackend, site: Site
) -> None:
    site.simulator.order("task", "revertToSnapshot", fault="FileFault", times=1)
    with pytest.raises(MachineryError) as caught:
        await backend.restore_and_start(ONE, SNAPSHOT)
    assert str(caught.value) == f"{ONE}: *types.FileFault (FileFault)"
    assert caught.value.__cause__ is not None


async def test_what_the_user_may_not_do_is_told(backend: VsphereBackend, site: Site) -> None:
    site.simulator.order("call", "RevertToSnapshot_Task", fault="NoPermission")
    with pytest.raises(MachineryError, match=rf"{ONE}: .*\(NoPermission\)"):
        await backend.restore_and_start(ONE, SNAPSHOT)


async def test_a_task_that_does_not_end_is_given_up_and_named(make: Make, site: Site) -> None:
    backend = await make(site, task_timeout="1")
    site.simulator.order("delay", millis=60_000)
    began = time.monotonic()
    with pytest.raises(OperationTimedOut, match=f"{ONE}: revert is not done after 1 s"):
        await backend.restore_and_start(ONE, SNAPSHOT)
    assert time.monotonic() - began < 4


async def test_a_question_that_holds_a_task_up_is_told(make: Make, site: Site) -> None:
    backend = await make(site, task_timeout="1")
    site.simulator.order("delay", millis=60_000)
    site.simulator.order("machine", ONE, fault="question")
    with pytest.raises(OperationTimedOut, match="waits for an answer to: Did you move it, or copy"):
        await backend.restore_and_start(ONE, SNAPSHOT)


async def test_forty_machines_start_at_once_over_twenty_threads(
    make: Make, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_machinery_vsphere.backend.ORDER_THREADS", 20)
    site = simulate("-machines", "40")
    labels = sorted(site.admin.all())
    backend = await make(site, *labels)
    site.simulator.order("delay", millis=200)
    site.simulator.calls()
    await asyncio.gather(*(backend.restore_and_start(label, "") for label in labels))
    assert {await backend.state(label) for label in labels} == {RUNNING}
    assert site.simulator.calls()["PowerOnVM_Task"] == 40


async def test_a_power_off_waits_for_the_task_that_is_in_its_way(
    backend: VsphereBackend, site: Site
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    site.simulator.order("delay", millis=300)
    other = site.admin.machine(TWO).PowerOn()  # the latest task: the one that is in the way
    site.simulator.order("call", "PowerOffVM_Task", fault="TaskInProgress", times=1)
    site.simulator.calls()
    await backend.power_off(ONE)
    assert other.info.state == "success"
    assert await backend.state(ONE) is OFF
    assert site.simulator.calls()["PowerOffVM_Task"] == 2  # the first was refused


async def test_a_start_that_was_given_up_sends_nothing_after_the_power_off(
    backend: VsphereBackend, site: Site
) -> None:
    site.admin.snapshot(ONE, "off", running=False)
    site.simulator.calls()
    site.simulator.order("delay", millis=1500)
    starting = asyncio.create_task(backend.restore_and_start(ONE, "off"))
    while not site.simulator.calls().get("RevertToSnapshot_Task"):
        await asyncio.sleep(0.01)
    starting.cancel()
    await backend.power_off(ONE)
    # the revert was still under way, and could have had the machine run after this
    assert {task.info.state for task in site.admin.content.taskManager.recentTask} == {"success"}
    await backend.close()
    assert "PowerOnVM_Task" not in site.simulator.calls()
    assert site.admin.machine(ONE).runtime.powerState == "poweredOff"


# -- the screen -----------------------------------------------------------------------------------


async def test_a_picture_is_fetched_and_not_left_on_the_datastore(
    backend: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    site.simulator.calls()
    await backend.screenshot(ONE, tmp_path / "screen")
    assert (tmp_path / "screen").read_bytes().startswith(b"\x89PNG")
    calls = site.simulator.calls()
    assert (calls["CreateScreenshot_Task"], calls["DeleteDatastoreFile_Task"]) == (1, 1)


async def test_a_server_without_pictures_is_told_as_such(
    backend: VsphereBackend, site: Site, tmp_path: Path
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    site.simulator.order("call", "CreateScreenshot_Task", fault="MethodNotFound")
    with pytest.raises(NotSupported, match=f"{ONE}: this vSphere cannot do it: "):
        await backend.screenshot(ONE, tmp_path / "screen")
    assert not (tmp_path / "screen").exists()


async def test_a_picture_that_is_long_in_coming_is_given_up(
    backend: VsphereBackend, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    monkeypatch.setattr("cuckoo_machinery_vsphere.backend.PROMPT", 0.5)
    site.simulator.order("http", status=200, millis=800)
    with pytest.raises(OperationTimedOut, match=r"no picture within 0.5 s"):
        await backend.screenshot(ONE, tmp_path / "screen")
    await backend.close()
    assert not (tmp_path / "screen").exists()
