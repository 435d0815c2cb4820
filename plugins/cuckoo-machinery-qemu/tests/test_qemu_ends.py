"""Whatever dies, however it dies: nothing of it is left, and what happened is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from qemukit import Lab, all_end, family, inside, links, pid_of, rules, started

from conftest import Make
from cuckoo_api.machinery import BackendUnavailable, BadConfig, MachineState, StateChange
from cuckoo_api.testing.rig import watching
from cuckoo_machinery_qemu.backend import QemuBackend

AS_A_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
"""Takes every right over the host away, and lets the files of the one who runs this be read."""


@contextlib.asynccontextmanager
async def told_of_the_end(backend: QemuBackend) -> AsyncIterator[list[StateChange]]:
    """The next change of machine one, which runs, in a list: it comes because of the block."""
    told: list[StateChange] = []
    async with watching(backend) as changes, asyncio.timeout(20):
        while await changes.get() != StateChange("one", MachineState.RUNNING):
            pass
        yield told
        while (change := await changes.get()).label != "one":
            pass
        told.append(change)


async def test_a_qemu_that_is_killed_is_told_of_with_the_reason(backend: QemuBackend) -> None:
    async with started(backend):
        with all_end(family(pid_of(backend))):
            async with told_of_the_end(backend) as told:
                os.kill(pid_of(backend), signal.SIGKILL)
    [change] = told
    assert change.state is MachineState.ABORTED
    assert change.reason.startswith("QEMU ended with signal 9")
    assert await backend.state("one") is MachineState.ABORTED
    await backend.power_off("one")
    assert not (backend.config.state_dir / "one/run").exists()


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_a_guest_that_shuts_itself_down_is_off_and_not_aborted(backend: QemuBackend) -> None:
    async with started(backend) as agent, told_of_the_end(backend) as told:
        await inside(agent, "(sync; echo o > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    assert told == [StateChange("one", MachineState.POWEROFF)]
    assert await backend.state("one") is MachineState.POWEROFF


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_a_qemu_that_hangs_up_is_ended(backend: QemuBackend) -> None:
    async with started(backend):
        process = backend._machines["one"].process
        assert process is not None
        # as one in a guest's hands may do: the process lives, its monitor does not answer
        await process.monitor._client.disconnect()
        with all_end([process.pid]):
            assert await backend.state("one") is MachineState.ABORTED


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_a_qemu_that_cannot_start_says_why(make: Make, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel at all")
    backend = await make(machine={"kernel": str(kernel)})
    with pytest.raises(BackendUnavailable, match=r"QEMU ended before it was ready: .*kernel"):
        await backend.restore_and_start("one", "")
    assert await backend.state("one") is MachineState.ABORTED
    await backend.power_off("one")
    assert not (backend.config.state_dir / "one/run").exists()


SLOW = """\
#!/bin/sh
echo begun >> {notes}
sleep 0.3
{program} "$@"
echo ended >> {notes}
"""


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_a_start_that_is_given_up_leaves_nobody_at_work_on_its_files(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, programs = tmp_path / "notes", tmp_path / "programs"
    programs.mkdir()
    slow = programs / "qemu-img"
    slow.write_text(SLOW.format(notes=notes, program=shutil.which("qemu-img")))
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    backend = await make()
    start = asyncio.create_task(backend.restore_and_start("one", ""))
    async with asyncio.timeout(20):
        while not notes.exists():
            await asyncio.sleep(0.01)
    start.cancel()
    await asyncio.wait({start})
    words = notes.read_text().split()
    assert words.count("begun") == words.count("ended")
    await backend.power_off("one")
    assert await backend.state("one") is MachineState.POWEROFF


# -- the server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def server(
    lab: Lab, state_dir: Path, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs machine one, once its guest has answered."""
    hold = str(Path(__file__).with_name("hold.py"))
    process = subprocess.Popen(
        [*prefix, sys.executable, hold, str(state_dir), *lab.words()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "the guest says Linux\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_server_that_is_killed_leaves_no_machine_and_the_next_one_cleans_up(
    lab: Lab, make: Make, tmp_path: Path
) -> None:
    before = links()
    state_dir = tmp_path / "state"  # the same as that of the next one
    with server(lab, state_dir) as process:
        below = family(process.pid)[1:]
        names = {Path(f"/proc/{pid}/exe").readlink().name for pid in below}
        assert "qemu-system-x86_64" in names
        assert len(below) == (1 if lab.network == "bridge" else 2)  # the relay
        with all_end(below):
            process.kill()
    # a tap goes with its QEMU; the bridge and its rules stand, and shut everything
    assert links() - before == ({"cktbr"} if lab.network == "bridge" else set())
    sockets = [path.readlink() for path in state_dir.glob(".sockets")]
    assert len(sockets) == (lab.network == "user")
    left = [state_dir / "one/run", *sockets]
    assert all(path.exists() for path in left)
    backend = await make()
    assert not any(path.exists() for path in left)
    await backend.close()
    assert list(state_dir.glob(".sockets")) == []
    assert links() == before
    assert rules() == ""


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_an_ordinary_user_runs_machines_too(lab: Lab, tmp_path: Path) -> None:
    state_dir = lab.state_dir(tmp_path / "state")
    with server(lab, state_dir, AS_A_USER) as process:
        below = family(process.pid)[1:]
        with all_end(below):
            output, _ = process.communicate("")
        assert output == "closed\n"
        assert process.returncode == 0
    assert not (state_dir / "one/run").exists()


async def test_close_leaves_nothing(lab: Lab, make: Make) -> None:
    before = links()
    backend = await make()
    async with started(backend), started(backend, "two"):
        with all_end([*family(pid_of(backend)), *family(pid_of(backend, "two"))]):
            assert (links() == before) is (lab.network == "user")
            await backend.close()
    assert links() == before
    assert rules() == ""


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_a_machine_that_cannot_be_keeps_no_other_from_running(
    lab: Lab, tmp_path: Path
) -> None:
    config = lab.config(lab.state_dir(tmp_path / "state"))
    one, two = config.machines
    image = tmp_path / "later.qcow2"
    broken = replace(two, options={**two.options, "image": str(image)})
    evil = replace(two, label="../evil")
    backend = QemuBackend(replace(config, machines=(one, broken, evil)))
    await backend.open()
    try:
        assert await backend.labels() == ["one", "two", "../evil"]
        facts = [await backend.inspect(label) for label in await backend.labels()]
        assert [f.snapshots for f in facts] == [("clean",), ("clean",), ()]
        assert [f.faults for f in facts[:2]] == [
            (),
            (f"two: image = {image} is not there; run 'cuckoo guest build'",),
        ]
        assert "allowed: up to 64 letters" in facts[2].faults[0]
        for label in ("two", "../evil"):
            with pytest.raises(BadConfig):
                await backend.restore_and_start(label, "")
        async with started(backend):
            pass
        image.symlink_to(two.options["image"])
        assert "taken with another image" in (await backend.inspect("two")).faults[0]
    finally:
        await backend.close()
