"""Machines that hang, that others hold or change, or of which VirtualBox knows nothing."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from standin import StandIn
from vboxkit import Answer, Program, config_for

from cuckoo_api.machinery import (
    BackendUnavailable,
    BadConfig,
    MachineNotFound,
    MachineState,
    StateChange,
    WrongState,
)
from cuckoo_machinery_virtualbox import backend as module
from cuckoo_machinery_virtualbox import processes, watch
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend
from cuckoo_machinery_virtualbox.processes import running


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    """Two machines."""
    with closing(StandIn(tmp_path, "one", "two")) as made:
        yield made


@pytest.fixture
def backend(standin: StandIn, tmp_path: Path) -> Iterator[VirtualBoxBackend]:
    """A backend on them."""
    with Program(tmp_path, standin.answer) as program:
        yield VirtualBoxBackend(config_for(program.path, tmp_path, "one", "two"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not let a session take its time."""
    monkeypatch.setattr(module, "OFF_PATIENCE", 0.3)


async def asked(standin: StandIn, command: str) -> None:
    """Until it was asked this."""
    async with asyncio.timeout(10):
        while all(words[0] != command for words in standin.commands):
            await asyncio.sleep(0.001)


async def test_a_machine_that_hangs_in_its_end_is_killed(
    backend: VirtualBoxBackend, standin: StandIn, impatient: None
) -> None:
    await backend.restore_and_start("one", "clean")
    standin.machines["one"].enter("poweroff")  # and its process stays
    await backend.power_off("one")
    assert running(standin.machines["one"].uuid) == []
    assert await backend.state("one") is MachineState.POWEROFF


async def test_a_guest_that_runs_on_behind_virtualbox_s_back_is_killed(
    backend: VirtualBoxBackend, standin: StandIn, impatient: None
) -> None:
    machine = standin.machines["one"]
    await backend.restore_and_start("one", "clean")
    process, machine.process = machine.process, None  # VBoxSVC was killed, and is back
    machine.enter("poweroff")
    assert process is not None
    assert process.stdin is not None
    with process, process.stdin:
        await backend.restore_and_start("one", "clean")
        assert machine.process is not None
        assert running(machine.uuid) == [machine.process.pid]
        assert process.wait() < 0


async def test_a_guest_whose_vboxsvc_was_killed_does_not_keep_the_next_one_from_coming(
    backend: VirtualBoxBackend, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = standin.machines["one"]
    await backend.restore_and_start("one", "clean")
    standin.down = True
    own = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0]
    monkeypatch.setattr(processes, "SERVER", own.rpartition(b"/")[2])
    with pytest.raises(BackendUnavailable):
        await backend.state("one")
    assert running(machine.uuid) != []  # this process, in VBoxSVC's place, is still there
    monkeypatch.setattr(processes, "SERVER", b"nothing has this name")
    with pytest.raises(BackendUnavailable):
        await backend.state("one")
    assert machine.process is not None
    assert await asyncio.to_thread(machine.process.wait) < 0


async def test_an_off_machine_that_a_program_has_open_is_off(
    backend: VirtualBoxBackend, standin: StandIn, impatient: None
) -> None:
    standin.machines["one"].session_until = math.inf
    await backend.power_off("one")
    with pytest.raises(WrongState, match="already locked by a session"):
        await backend.restore_and_start("one", "clean")


async def test_a_power_off_ends_a_start_that_is_under_way(
    backend: VirtualBoxBackend, standin: StandIn
) -> None:
    starting = asyncio.create_task(backend.restore_and_start("one", "clean"))
    await asked(standin, "snapshot")
    await backend.power_off("one")
    with pytest.raises(WrongState, match="one: it was powered off while it started"):
        await starting
    assert running(standin.machines["one"].uuid) == []


async def test_a_start_that_is_given_up_is_not_carried_out_later(
    standin: StandIn, tmp_path: Path
) -> None:
    ordered, carried_out = threading.Event(), threading.Event()

    def slow_start(words: Sequence[str]) -> Answer:
        if words[0] != "startvm":
            return standin.answer(words)
        ordered.set()
        time.sleep(0.3)  # VBoxSVC is about to do it, whether anybody waits for it or not
        standin.answer(words)
        process = standin.machines["one"].process
        assert process is not None
        carried_out.set()
        process.wait()
        return Answer("", "VBoxManage: error: The virtual machine has terminated unexpectedly\n", 1)

    with Program(tmp_path, slow_start) as program:
        backend = VirtualBoxBackend(config_for(program.path, tmp_path, "one"))
        starting = asyncio.create_task(backend.restore_and_start("one", "clean"))
        await asyncio.to_thread(ordered.wait)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()
        await backend.power_off("one")
        await asyncio.to_thread(carried_out.wait)
        assert await backend.state("one") is MachineState.POWEROFF
        assert running(standin.machines["one"].uuid) == []


async def test_a_machine_whose_process_hangs_still_has_a_state(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHOW_TIMEOUT", 0.3)
    over = threading.Event()

    def hang(words: Sequence[str]) -> Answer:
        if words[0] == "showvminfo":
            over.wait()
        return standin.answer(words)

    with Program(tmp_path, hang) as program:
        backend = VirtualBoxBackend(config_for(program.path, tmp_path, "one"))
        assert await backend.state("one") is MachineState.POWEROFF
        over.set()


async def test_a_memory_dump_keeps_nobody_from_a_screenshot_or_from_the_power(
    standin: StandIn, tmp_path: Path
) -> None:
    begun, over = threading.Event(), threading.Event()

    def slow_dump(words: Sequence[str]) -> Answer:
        if words[0] == "debugvm":
            begun.set()
            over.wait()
        return standin.answer(words)

    with Program(tmp_path, slow_dump) as program:
        backend = VirtualBoxBackend(config_for(program.path, tmp_path, "one"))
        await backend.restore_and_start("one", "clean")
        dumping = asyncio.create_task(backend.dump_memory("one", tmp_path / "memory"))
        await asyncio.to_thread(begun.wait)
        await backend.screenshot("one", tmp_path / "screen")
        assert await backend.state("one") is MachineState.RUNNING
        await backend.power_off("one")
        assert not dumping.done()
        over.set()
        with pytest.raises(WrongState, match="is not currently running"):
            await dumping
    assert not (tmp_path / "memory").exists()


async def test_machines_of_one_name_are_told_apart_by_their_uuids(
    backend: VirtualBoxBackend, standin: StandIn
) -> None:
    uuids = [machine.uuid for machine in standin.machines.values()]
    standin.machines["two"].name = "one"
    assert await backend.labels() == uuids
    with pytest.raises(BadConfig, match="has 2 machines called 'one'"):
        await backend.state("one")
    assert await backend.state(uuids[1]) is MachineState.POWEROFF
    [fault] = (await backend.inspect("one")).faults
    assert f"set the label to the UUID of one: {uuids[0]}, {uuids[1]}" in fault


async def test_a_machine_that_gets_another_name_is_not_taken_for_the_one_that_it_was(
    backend: VirtualBoxBackend, standin: StandIn
) -> None:
    await backend.state("one")
    standin.machines["one"].name = "other"
    with pytest.raises(MachineNotFound, match="one: VirtualBox calls this machine other now"):
        await backend.state("one")
    with pytest.raises(MachineNotFound, match="it has: other, two"):
        await backend.state("one")


# -- changes made by others -----------------------------------------------------------------------


@pytest.fixture
async def events(backend: VirtualBoxBackend) -> AsyncIterator[AsyncIterator[StateChange]]:
    """What is watched, after the first report of both machines."""
    stream = backend.watch()
    first = {(await anext(stream)).label, (await anext(stream)).label}
    assert first == {"one", "two"}
    yield stream
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_what_somebody_else_does_to_a_machine_is_seen(
    events: AsyncIterator[StateChange], standin: StandIn
) -> None:
    # all that is asked without news comes after 30 s
    async with asyncio.timeout(5):
        standin.answer(["startvm", "two", "--type", "gui"])
        assert await anext(events) == StateChange("two", MachineState.RUNNING, "running")
        standin.answer(["controlvm", "two", "pause"])
        assert await anext(events) == StateChange("two", MachineState.PAUSED, "paused")
        standin.answer(["controlvm", "two", "poweroff"])
        assert await anext(events) == StateChange("two", MachineState.POWEROFF, "poweroff")


async def test_a_guest_that_makes_its_log_grow_hides_no_other_machine(
    events: AsyncIterator[StateChange], standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GATHER", 0.05)
    monkeypatch.setattr(watch, "LAST_LOOK", 0.5)
    news = asyncio.ensure_future(anext(events))
    noisy, quiet = standin.machines["one"].log, standin.machines["two"]
    standin.commands.clear()
    quiet.log.write_text("Changing the VM state")
    await asked(standin, "showvminfo")
    quiet.word = "saved"
    async with asyncio.timeout(10):
        while not news.done():
            noisy.write_text("noise")
            await asyncio.sleep(0.01)
    assert await news == StateChange("two", MachineState.SAVED, "saved")


async def test_a_machine_that_died_is_told_to_be_off_once_its_power_was_cut(
    backend: VirtualBoxBackend, events: AsyncIterator[StateChange], standin: StandIn
) -> None:
    async with asyncio.timeout(10):
        standin.answer(["startvm", "two", "--type", "headless"])
        assert (await anext(events)).state is MachineState.RUNNING
        process = standin.machines["two"].process
        assert process is not None
        process.kill()
        assert await anext(events) == StateChange("two", MachineState.ABORTED, "aborted")
        await backend.power_off("two")
        assert await anext(events) == StateChange("two", MachineState.POWEROFF, "aborted")


async def test_a_log_that_is_written_before_the_state_changes_misleads_nobody(
    events: AsyncIterator[StateChange], standin: StandIn
) -> None:
    machine = standin.machines["two"]
    news = asyncio.ensure_future(anext(events))
    standin.commands.clear()
    machine.log.write_text("Changing the VM state")
    await asked(standin, "showvminfo")
    machine.word = "saved"
    async with asyncio.timeout(10):
        assert await news == StateChange("two", MachineState.SAVED, "saved")
