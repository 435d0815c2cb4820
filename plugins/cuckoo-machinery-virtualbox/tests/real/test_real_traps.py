"""What the suite of the contract does not ask: VirtualBox's own ways, on the real one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from guest import read_line, write_line
from rig import SNAPSHOT, VirtualBox

from cuckoo_api.machinery import (
    BackendUnavailable,
    BadConfig,
    MachineState,
    SnapshotNotFound,
    StateChange,
)
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend
from cuckoo_machinery_virtualbox.processes import running

MEMORY = 32 << 20
SEEN = 1.0
"""Seconds after which a change made by somebody else has been told."""


@pytest.fixture(autouse=True)
async def clean(virtualbox: VirtualBox, backend: VirtualBoxBackend) -> AsyncIterator[None]:
    """Leave ``one`` off and with no more snapshots than it had."""
    yield
    await backend.power_off("one")
    await asyncio.to_thread(virtualbox.clean, "one")


def process_of(virtualbox: VirtualBox, name: str) -> int:
    """The id of the process that runs the machine."""
    [pid] = running(virtualbox.uuid(name))
    return pid


# -- what a guest did -----------------------------------------------------------------------------


async def test_what_a_guest_wrote_to_its_disk_survives_a_reset_and_no_revert(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    serial = virtualbox.serial("one")
    async with asyncio.timeout(60):
        await backend.restore_and_start("one", SNAPSHOT)
        assert await read_line(serial) == ""
        await write_line(serial, "a sample was here")
        await backend.reboot("one")
        assert await read_line(serial) == "a sample was here"
        await backend.restore_and_start("one", SNAPSHOT)
        assert await read_line(serial) == ""


async def test_a_snapshot_of_a_running_machine_goes_on_where_it_was_taken(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    await backend.restore_and_start("one", SNAPSHOT)
    await backend.take_snapshot("one", "live")
    await backend.power_off("one")
    await asyncio.to_thread(virtualbox.run, "snapshot", "one", "restore", "live")
    assert await backend.state("one") is MachineState.SAVED
    await backend.restore_and_start("one", "live")
    assert await backend.state("one") is MachineState.RUNNING


async def test_the_memory_of_a_paused_machine_is_an_elf_core(
    backend: VirtualBoxBackend, tmp_path: Path
) -> None:
    await backend.restore_and_start("one", SNAPSHOT)
    await backend.pause("one")
    (tmp_path / ".memory.new").write_text("left by an attempt that was killed")
    await backend.dump_memory("one", tmp_path / "memory")
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]
    assert (tmp_path / "memory").read_bytes()[:4] == b"\x7fELF"
    assert (tmp_path / "memory").stat().st_size > MEMORY
    assert await backend.state("one") is MachineState.PAUSED


# -- machines that hang, and what VirtualBox forgets ----------------------------------------------


async def test_a_machine_whose_process_stands_still_has_a_state_and_can_be_ended(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    await backend.restore_and_start("one", SNAPSHOT)
    os.kill(process_of(virtualbox, "one"), signal.SIGSTOP)
    async with asyncio.timeout(5):
        assert await backend.state("one") is MachineState.RUNNING
    async with asyncio.timeout(10):
        await backend.power_off("one")
    assert await backend.state("one") is MachineState.POWEROFF


async def test_a_start_that_hangs_can_be_ended(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    await asyncio.to_thread(virtualbox.lose_network, "one", "lost")
    [fault] = (await backend.inspect("one")).faults
    assert "its network is on vboxnet0, which is not there" in fault
    starting = asyncio.create_task(backend.restore_and_start("one", "lost"))
    ended, _ = await asyncio.wait({starting}, timeout=10)
    assert not ended
    starting.cancel()
    await asyncio.wait({starting})
    async with asyncio.timeout(10):
        await backend.power_off("one")
    assert await backend.state("one") is MachineState.POWEROFF
    assert running(virtualbox.uuid("one")) == []


async def test_vboxsvc_is_killed_and_all_goes_on(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    await backend.restore_and_start("one", SNAPSHOT)
    await asyncio.to_thread(virtualbox.signal_server, signal.SIGKILL)
    async with asyncio.timeout(30):
        while True:
            try:
                await backend.restore_and_start("one", SNAPSHOT)
            except BackendUnavailable:
                continue  # as the server does, when it has put the task back
            break
    assert await backend.state("one") is MachineState.RUNNING
    assert len(running(virtualbox.uuid("one"))) == 1  # the one of before is no more


# -- what others do -------------------------------------------------------------------------------


async def test_what_somebody_else_does_is_told_within_a_second(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[tuple[StateChange, float]] = asyncio.Queue()

    async def follow() -> None:
        async for change in backend.watch():
            news.put_nowait((change, loop.time()))

    async def told(state: MachineState, *words: str) -> None:
        if words:
            await asyncio.to_thread(virtualbox.run, *words)
        else:
            os.kill(await asyncio.to_thread(process_of, virtualbox, "one"), signal.SIGKILL)
        done = loop.time()
        while True:
            change, when = await news.get()
            if (change.label, change.state) == ("one", state):
                break
        assert when - done < SEEN, f"{words}: {when - done:.2f} s"

    following = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(90):
            await told(MachineState.RUNNING, "startvm", "one", "--type", "headless")
            await told(MachineState.PAUSED, "controlvm", "one", "pause")
            await told(MachineState.RUNNING, "controlvm", "one", "resume")
            await told(MachineState.SAVED, "controlvm", "one", "savestate")
            await virtualbox.released("one")
            await told(MachineState.POWEROFF, "discardstate", "one")
            await told(MachineState.RUNNING, "startvm", "one", "--type", "headless")
            await told(MachineState.POWEROFF, "controlvm", "one", "poweroff")
            await virtualbox.released("one")
            await told(MachineState.RUNNING, "startvm", "one", "--type", "headless")
            await told(MachineState.ABORTED)
    finally:
        following.cancel()
        await asyncio.wait({following})


async def test_what_somebody_saved_is_off_after_a_power_off(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    await backend.restore_and_start("one", SNAPSHOT)
    await asyncio.to_thread(virtualbox.run, "controlvm", "one", "savestate")
    await backend.power_off("one")
    assert await backend.state("one") is MachineState.POWEROFF


# -- names, and what is broken --------------------------------------------------------------------


async def test_snapshots_of_one_name_are_told_apart_by_their_uuids(
    virtualbox: VirtualBox, backend: VirtualBoxBackend
) -> None:
    for _ in range(2):
        await asyncio.to_thread(virtualbox.run, "snapshot", "one", "take", "twice")
    assert (await backend.inspect("one")).snapshots == (SNAPSHOT, "twice", "twice")
    with pytest.raises(SnapshotNotFound, match="2 snapshots are called 'twice'") as caught:
        await backend.restore_and_start("one", "twice")
    uuid = str(caught.value).partition("(")[2][:36]
    await backend.restore_and_start("one", uuid)
    assert await backend.state("one") is MachineState.RUNNING


async def test_machines_of_one_name_are_told_apart_by_their_uuids(
    virtualbox: VirtualBox, backend: VirtualBoxBackend, tmp_path: Path
) -> None:
    uuids = [virtualbox.make_empty("same", tmp_path / folder) for folder in "ab"]
    try:
        assert set(uuids) < set(await backend.labels())
        with pytest.raises(BadConfig, match="has 2 machines called 'same'"):
            await backend.power_off("same")
        assert await backend.state(uuids[1]) is MachineState.POWEROFF
    finally:
        for uuid in uuids:
            virtualbox.forget(uuid)


async def test_a_machine_whose_settings_are_broken_is_named_with_its_fault(
    virtualbox: VirtualBox, backend: VirtualBoxBackend, tmp_path: Path
) -> None:
    uuid = virtualbox.make_empty("broken", tmp_path)
    try:
        (tmp_path / "broken" / "broken.vbox").write_text("no XML")
        virtualbox.signal_server(signal.SIGKILL)  # it reads them when it starts
        assert uuid in await backend.labels()
        [fault] = (await backend.inspect(uuid)).faults
        assert fault.endswith("The object functionality is limited (E_ACCESSDENIED)")
    finally:
        virtualbox.forget(uuid)
