"""The conformance suite runs on the fake, with all capabilities and with none; and it bites."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cuckoo_api.fleet import load_plugins
from cuckoo_api.machinery import (
    BackendConfig,
    Capability,
    MachineConfig,
    MachineryBackend,
    MachineState,
    NotSupported,
)
from cuckoo_api.testing.conformance import MachineryConformance, Rig, event_loop_watched
from cuckoo_api.testing.fake import ALL, FakeBackend, FakeHypervisor, Slow, fake_plugin

pytestmark = pytest.mark.slow

LABELS = ("one", "two")


def make_rig(world: FakeHypervisor, folder: Path, capabilities: Capability) -> Rig:
    for label in LABELS:
        world.add(label, with_guest=False)
    config = BackendConfig(
        name="fake",
        machines=tuple(MachineConfig(label=n, name=n, snapshot="clean") for n in LABELS),
        state_dir=folder,
    )
    plugin = load_plugins([fake_plugin(world, capabilities=capabilities)])["fake"]

    async def write_inside(label: str, text: str) -> None:
        world.machines[label].disk["/mark"] = text.encode()

    async def read_inside(label: str) -> str:
        return world.machines[label].disk.get("/mark", b"").decode()

    return Rig(
        make=lambda: plugin.backend(config),
        labels=LABELS,
        snapshot="clean",
        timeout=1,
        cancel_after=(0, 0.005),
        write_inside=write_inside,
        read_inside=read_inside,
        kill_machine=world.kill,
        hypervisor_down=world.down,
        hypervisor_up=world.up,
    )


@pytest.fixture
async def world() -> AsyncIterator[FakeHypervisor]:
    async with FakeHypervisor() as world:
        yield world
        assert world.open_backends == 0
        assert world.watched == 0


class TestFakeWithEverything(MachineryConformance):
    @pytest.fixture
    async def rig(self, world: FakeHypervisor, tmp_path: Path) -> Rig:
        return make_rig(world, tmp_path, ALL)


class TestFakeWithNothing(MachineryConformance):
    @pytest.fixture
    async def rig(self, world: FakeHypervisor, tmp_path: Path) -> Rig:
        return make_rig(world, tmp_path, Capability.NONE)


class TestSlowFake(MachineryConformance):
    """The cancel comes in the middle of the start, not after it."""

    @pytest.fixture
    async def rig(self, world: FakeHypervisor, tmp_path: Path) -> Rig:
        world.behave("restore_and_start", Slow(seconds=0.01))
        return make_rig(world, tmp_path, ALL)


class Blocking(FakeBackend):
    async def state(self, label: str) -> MachineState:
        time.sleep(0.1)
        return await super().state(label)


class Forgetful(FakeBackend):
    """Takes the label for granted and starts without a revert."""

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        await self._world.start_by_hand(label)


class Fussy(FakeBackend):
    async def power_off(self, label: str) -> None:
        if await self.state(label) is MachineState.POWEROFF:
            raise AssertionError("Domain is not running")
        await super().power_off(label)


class Undeclared(FakeBackend):
    capabilities = ALL & ~Capability.SCREENSHOT

    def _need(self, capability: Capability) -> None:
        """Works whatever was declared."""


class Deaf(FakeBackend):
    """A start that hangs on when it is cancelled."""

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            pass
        await super().restore_and_start(label, snapshot)
        raise RuntimeError("the cancel came in the wrong moment")


Suite = MachineryConformance


@pytest.mark.parametrize(
    ("backend_class", "test", "complaint"),
    [
        (Forgetful, Suite.test_a_revert_leaves_nothing, "conformance was here"),
        (Fussy, Suite.test_power_off_is_idempotent, "Domain is not running"),
        (Deaf, Suite.test_power_off_mends_a_cancelled_start, "wrong moment"),
    ],
)
async def test_it_finds_a_bad_backend(
    world: FakeHypervisor,
    tmp_path: Path,
    backend_class: Callable[[BackendConfig, FakeHypervisor], MachineryBackend],
    test: Callable[..., object],
    complaint: str,
) -> None:
    rig = make_rig(world, tmp_path, ALL)
    backend = backend_class(rig.make().config, world)
    await backend.open()
    with pytest.raises((AssertionError, RuntimeError), match=complaint):
        await test(Suite(), backend, rig)  # type: ignore[misc]  # a coroutine function
    await backend.close()


async def test_it_finds_a_capability_that_was_not_declared(
    world: FakeHypervisor, tmp_path: Path
) -> None:
    rig = make_rig(world, tmp_path, ALL)
    backend = Undeclared(rig.make().config, world)
    await backend.open()
    with pytest.raises(pytest.fail.Exception, match=r"screenshot\(\) works"):
        await Suite().test_what_it_cannot_do_it_refuses(backend, rig, tmp_path)
    await backend.close()


async def test_it_finds_a_blocked_event_loop(world: FakeHypervisor, tmp_path: Path) -> None:
    rig = make_rig(world, tmp_path, ALL)
    backend = Blocking(rig.make().config, world)
    with pytest.raises(AssertionError, match="the event loop stood still"):
        async with event_loop_watched(0.05):
            await backend.state("one")


async def test_it_finds_an_event_loop_that_computes() -> None:
    with pytest.raises(AssertionError, match="the event loop stood still"):
        async with event_loop_watched(0.05):
            end = time.process_time() + 0.1
            while time.process_time() < end:
                pass


async def test_what_a_rig_lacks_has_to_be_explained(world: FakeHypervisor, tmp_path: Path) -> None:
    rig = replace(make_rig(world, tmp_path, ALL), kill_machine=None, labels=("one",))
    backend = rig.make()
    with pytest.raises(AssertionError, match="kill_machine"):
        await Suite().test_a_machine_that_died_is_seen_and_mended(backend, rig)
    with pytest.raises(AssertionError, match="second_machine"):
        await Suite().test_two_machines_at_once(backend, rig)
    explained = replace(rig, without={"kill_machine": "no way in", "second_machine": "one only"})
    await Suite().test_a_machine_that_died_is_seen_and_mended(backend, explained)
    await Suite().test_two_machines_at_once(backend, explained)


async def test_the_abstract_backend_refuses_what_is_optional(tmp_path: Path) -> None:
    class Bare(MachineryBackend):
        async def open(self) -> None:
            """Nothing to open."""

        async def close(self) -> None:
            """Nothing to close."""

        async def labels(self) -> list[str]:
            return []

        async def state(self, label: str) -> MachineState:
            return MachineState.POWEROFF

        async def restore_and_start(self, label: str, snapshot: str) -> None:
            """Nothing to start."""

        async def power_off(self, label: str) -> None:
            """Nothing to stop."""

    bare = Bare(BackendConfig(name="bare", machines=(), state_dir=tmp_path))
    for call in (bare.reboot, bare.pause, bare.resume, bare.console):
        with pytest.raises(NotSupported, match="bare"):
            await call("one")
    for dump in (bare.screenshot, bare.dump_memory, bare.start_capture):
        with pytest.raises(NotSupported, match="bare"):
            await dump("one", tmp_path / "x")
    with pytest.raises(NotSupported, match="bare"):
        await bare.stop_capture("one")
    with pytest.raises(NotSupported, match="bare"):
        await bare.take_snapshot("one", "s")
    with pytest.raises(NotSupported, match="bare"):
        bare.watch()
    with pytest.raises(NotSupported, match="bare"):
        bare.address("one")
