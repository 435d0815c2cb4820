"""The backend against what the real VBoxManage answered; a command that was not recorded fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vboxkit import RECORDED, WIN7, Program, Replay, config_for

from cuckoo_api.machinery import (
    MachineNotFound,
    MachineryError,
    MachineState,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend
from cuckoo_machinery_virtualbox.info import shown

VM = "win7x64"
LIST = "017-list-vms"
OFF, RUNNING = "131-state", "066-state-after-live-snapshot"
BROKEN = "6283a0e2-302e-4249-80a7-4e956cb11f97"

# asked for another machine, and fits one that is there no more
RECORDED["021-gone"] = RECORDED["021-showvminfo-unknown"] | {
    "cmd": RECORDED["019-showvminfo-mr"]["cmd"]
}

Play = Callable[..., VirtualBoxBackend]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """A backend whose VBoxManage answers with these recordings, all of them, in this order."""
    plays: list[Replay] = []
    with ExitStack() as stack:

        def begin(*names: str) -> VirtualBoxBackend:
            plays.append(Replay(*names))
            program = stack.enter_context(Program(tmp_path, plays[-1].answer))
            return VirtualBoxBackend(config_for(program.path, tmp_path, VM))

        yield begin
    for replay in plays:
        assert replay.surprises == []
        assert replay.left == []


# -- looking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "state"),
    [
        ("019-showvminfo-mr", MachineState.POWEROFF),
        ("051-showvminfo-running", MachineState.RUNNING),
        ("056-state-paused", MachineState.PAUSED),
        ("074-state-after-poweroff", MachineState.SAVED),
        ("134-state-right-after-kill", MachineState.ABORTED),
    ],
)
async def test_the_state_is_virtualbox_s_word(
    play: Play, recorded: str, state: MachineState
) -> None:
    assert await play(LIST, recorded).state(VM) is state


async def test_a_broken_machine_is_listed_by_its_uuid(play: Play) -> None:
    assert await play("154-list-vms-inaccessible").labels() == [VM, BROKEN]


async def test_what_is_wrong_with_a_broken_machine_is_its_fault(play: Play) -> None:
    backend = play("154-list-vms-inaccessible", "155-showvminfo-inaccessible")
    [fault] = (await backend.inspect(BROKEN)).faults
    assert fault.endswith("The object functionality is limited (E_ACCESSDENIED)")


async def test_a_machine_that_is_not_there(play: Play) -> None:
    with pytest.raises(MachineNotFound, match="no machine 'nosuchvm'; it has: win7x64"):
        await play(LIST).state("nosuchvm")


async def test_a_machine_that_goes_away(play: Play) -> None:
    backend = play(LIST, "019-showvminfo-mr", "021-gone", "158-list-vms", "019-showvminfo-mr")
    await backend.state(VM)
    with pytest.raises(MachineNotFound, match="Could not find a registered machine"):
        await backend.state(VM)
    assert await backend.state(VM) is MachineState.POWEROFF  # one of this name is looked for anew


async def test_where_somebody_else_asks_at_the_same_time_the_list_answers(play: Play) -> None:
    backend = play(LIST, "180-concurrent-showvminfo-failure", "018-list-vms-long")
    assert await backend.state(VM) is MachineState.POWEROFF


async def test_a_network_that_is_not_there_is_a_fault(play: Play) -> None:
    facts = await play(LIST, "019-showvminfo-mr", "005-list-hostonlyifs").inspect(VM)
    [fault] = facts.faults
    assert fault.startswith("win7x64: its network is on vboxnet0, which is not there")
    assert (facts.platform, facts.snapshots, facts.current_snapshot) == ("windows", (), "")


def test_snapshots_are_read_with_names_that_repeat() -> None:
    info = shown(RECORDED["116-snapshot-list-nested"]["stdout"])
    assert [one.name for one in info.snapshots] == ["clean", "second", "second"]
    assert info.current == info.snapshots[2].uuid


# -- power ----------------------------------------------------------------------------------------


async def test_a_running_machine_is_reverted_once_its_session_is_gone(play: Play) -> None:
    poweroff = ["071-controlvm-poweroff-running", "072-state-immediately-after-poweroff", OFF]
    restore = "073-snapshot-restore-immediately-after-poweroff"
    backend = play(LIST, RUNNING, *poweroff, OFF, restore, "132-startvm")
    await backend.restore_and_start(VM, "clean")


async def test_without_a_name_the_current_snapshot_is_restored(play: Play) -> None:
    backend = play(LIST, OFF, OFF, "143-restorecurrent", "132-startvm")
    await backend.restore_and_start(VM, "")


async def test_without_any_snapshot_it_starts_from_its_disk(play: Play) -> None:
    backend = play(LIST, "019-showvminfo-mr", "019-showvminfo-mr", "149-startvm-nat")
    await backend.restore_and_start(VM, "")


async def test_a_missing_snapshot_is_told_with_those_that_are_there(play: Play) -> None:
    with pytest.raises(SnapshotNotFound, match="no snapshot 'nosuch'; there is: clean, second"):
        await play(LIST, OFF, OFF).restore_and_start(VM, "nosuch")


async def test_a_locked_machine_is_told_in_virtualbox_s_words(play: Play) -> None:
    none = "019-showvminfo-mr"
    with pytest.raises(WrongState) as caught:
        await play(LIST, none, none, "052-startvm-already-running").restore_and_start(VM, "")
    assert str(caught.value) == (
        f"win7x64: VBoxManage startvm {WIN7} --type headless: The machine 'win7x64' is already "
        "locked by a session (or being locked or unlocked) (VBOX_E_INVALID_OBJECT_STATE)"
    )


async def test_a_start_that_fails_is_told_in_virtualbox_s_words(play: Play) -> None:
    none = "019-showvminfo-mr"
    with pytest.raises(MachineryError, match=r"unexpectedly during startup with exit code 1 \(0x1"):
        await play(LIST, none, none, "040-startvm-no-vboxdrv").restore_and_start(VM, "")


async def test_what_is_off_needs_no_power_off(play: Play) -> None:
    await play(LIST, "019-showvminfo-mr").power_off(VM)


async def test_a_machine_that_ends_before_the_order_comes_is_off(play: Play) -> None:
    backend = play(LIST, RUNNING, "025-controlvm-poweroff-off", "019-showvminfo-mr")
    await backend.power_off(VM)


async def test_a_saved_machine_is_off_without_its_state(play: Play) -> None:
    await play(LIST, "111-state", "130-discardstate", OFF).power_off(VM)


async def test_a_machine_that_is_saved_before_the_order_comes_is_off_too(play: Play) -> None:
    meanwhile = ["109-controlvm-poweroff", "107-state-after-savestate", "111-state"]
    await play(LIST, "101-state", *meanwhile, "130-discardstate", OFF).power_off(VM)


async def test_an_aborted_machine_is_off_once_its_power_was_cut(play: Play) -> None:
    killed, again = "134-state-right-after-kill", "140-state-aborted-saved"
    backend = play(LIST, killed, killed, "135-state-after-kill", again)
    assert await backend.state(VM) is MachineState.ABORTED
    await backend.power_off(VM)
    assert await backend.state(VM) is MachineState.POWEROFF
    assert await backend.state(VM) is MachineState.ABORTED  # it was started and died once more


async def test_a_paused_machine_may_be_paused(play: Play) -> None:
    backend = play(LIST, "055-controlvm-pause", "057-controlvm-pause-again", "056-state-paused")
    await backend.pause(VM)
    await backend.pause(VM)


async def test_a_running_machine_cannot_be_resumed(play: Play) -> None:
    with pytest.raises(WrongState, match="Cannot resume the machine as it is not paused"):
        await play(LIST, "059-controlvm-resume-again").resume(VM)


async def test_a_snapshot_is_taken_of_what_runs_only(play: Play) -> None:
    with pytest.raises(WrongState, match="win7x64 is poweroff, not running or paused"):
        await play(LIST, OFF).take_snapshot(VM, "clean")
