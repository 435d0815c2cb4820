# ruff: noqa: S101 - tests: an assert is how they speak, and they look at small files
"""The suite that holds a machinery plugin to its contract.

Subclass :class:`MachineryConformance` in a test module, give one fixture, and pytest runs it all::

    from cuckoo_api.testing.conformance import MachineryConformance, Rig

    class TestAcme(MachineryConformance):
        @pytest.fixture
        async def rig(self, tmp_path):
            config = BackendConfig(
                name="acme",
                machines=(MachineConfig(label="one", name="one", snapshot="clean"),
                          MachineConfig(label="two", name="two", snapshot="clean")),
                state_dir=tmp_path,
                options={"uri": "acme:///session"},
            )
            yield Rig(make=lambda: AcmeBackend(config), labels=("one", "two"), snapshot="clean",
                      write_inside=..., read_inside=...,
                      without={"hypervisor_down": "there is no daemon to stop"})

It needs ``pytest`` and ``pytest-asyncio`` in auto mode (the extra ``testing``); put
``pytest.register_assert_rewrite("cuckoo_api.testing")`` into conftest.py to read what differed.
The machines of the rig are the suite's own while it runs: they are reverted, powered off and,
with ``Capability.SNAPSHOT``, get a snapshot named ``conformance``.

Nothing is skipped in silence. A capability that the backend has not is asserted to raise
NotSupported; what the rig cannot do (the optional callables, a second machine) has to stand in
:attr:`Rig.without` with the reason, else that test fails.

A backend may override :attr:`Rig.timeout` (a revert on an emulated CPU takes long) and
:attr:`Rig.max_lag` (how long the event loop may stand still, measured during every test).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.machinery import (
    BackendUnavailable,
    Capability,
    MachineNotFound,
    MachineryBackend,
    MachineryError,
    MachineState,
    NotSupported,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_api.testing.rig import (
    Rig,
    event_loop_watched,
    eventually,
    expect,
    explained,
    has,
    is_pcap,
    start,
    use,
    watching,
    within,
)

__all__ = ["MachineryConformance", "Rig", "event_loop_watched", "start", "within"]

UNKNOWN = "no-such-thing-5f3a"
MARK = "conformance was here"
MAX_CONSOLE = 64 << 10
MAX_SOCKET_NAME = 107

OPTIONAL_CALLS: dict[Capability, tuple[str, ...]] = {
    Capability.REBOOT: ("reboot",),
    Capability.PAUSE: ("pause", "resume"),
    Capability.SNAPSHOT: ("take_snapshot",),
    Capability.SCREENSHOT: ("screenshot",),
    Capability.MEMORY_DUMP: ("dump_memory",),
    Capability.CAPTURE: ("start_capture", "stop_capture"),
    Capability.WATCH: ("watch",),
    Capability.ADDRESS: ("address",),
    Capability.CONSOLE: ("console",),
    Capability.INSPECT: ("inspect",),
}
"""The optional methods behind each capability."""


class MachineryConformance:
    """Subclass it and give the fixture ``rig``. One behaviour of the contract a test."""

    @pytest.fixture
    async def backend(self, rig: Rig) -> AsyncIterator[MachineryBackend]:
        """An open backend; afterwards the machines are off and the backend closed.

        While it is open the event loop is watched: a call that blocks it fails the test.
        """
        backend = rig.make()
        async with event_loop_watched(rig.max_lag):
            try:
                await within(30, backend.open())
                yield backend
                for label in rig.labels:
                    await within(10, backend.power_off(label))
            finally:
                await within(10, backend.close())

    # -- lifecycle ------------------------------------------------------------------------------

    async def test_lifecycle(self, backend: MachineryBackend, rig: Rig) -> None:
        label = rig.labels[0]
        await within(10, backend.power_off(label))
        assert await within(5, backend.state(label)) is MachineState.POWEROFF
        await start(backend, rig)
        assert await within(5, backend.state(label)) is MachineState.RUNNING
        await within(10, backend.power_off(label))
        assert await within(5, backend.state(label)) is MachineState.POWEROFF

    async def test_labels_name_the_machines(self, backend: MachineryBackend, rig: Rig) -> None:
        labels = await within(5, backend.labels())
        assert set(rig.labels) <= set(labels)
        assert len(labels) == len(set(labels))

    async def test_power_off_is_idempotent(self, backend: MachineryBackend, rig: Rig) -> None:
        label = rig.labels[0]
        await start(backend, rig)
        for _ in range(3):
            await within(10, backend.power_off(label))
            assert await within(5, backend.state(label)) is MachineState.POWEROFF

    async def test_start_of_a_running_machine_starts_it_afresh(
        self, backend: MachineryBackend, rig: Rig
    ) -> None:
        await start(backend, rig)
        await start(backend, rig)
        assert await within(5, backend.state(rig.labels[0])) is MachineState.RUNNING

    async def test_the_machine_survives_two_rounds(
        self, backend: MachineryBackend, rig: Rig
    ) -> None:
        for _ in range(2):
            await start(backend, rig)
            await within(10, backend.power_off(rig.labels[0]))

    async def test_the_empty_snapshot_is_the_current_one(
        self, backend: MachineryBackend, rig: Rig
    ) -> None:
        await within(rig.timeout, backend.restore_and_start(rig.labels[0], ""))
        assert await within(5, backend.state(rig.labels[0])) is MachineState.RUNNING

    async def test_close_is_idempotent(self, rig: Rig) -> None:
        backend = rig.make()
        await within(10, backend.close())
        await within(10, backend.close())
        backend = rig.make()
        await within(30, backend.open())
        await within(10, backend.close())
        await within(10, backend.close())

    async def test_a_new_backend_takes_over(self, rig: Rig) -> None:
        label = rig.labels[0]
        first = rig.make()
        await within(30, first.open())
        try:
            await start(first, rig)
        finally:
            await within(10, first.close())
        second = rig.make()
        await within(30, second.open())
        try:
            await within(10, second.power_off(label))
            assert await within(5, second.state(label)) is MachineState.POWEROFF
            await start(second, rig)
            await within(10, second.power_off(label))
        finally:
            await within(10, second.close())

    # -- wrong names ----------------------------------------------------------------------------

    async def test_unknown_label(self, backend: MachineryBackend) -> None:
        with pytest.raises(MachineNotFound, match=UNKNOWN):
            await within(5, backend.state(UNKNOWN))
        with pytest.raises(MachineNotFound, match=UNKNOWN):
            await within(10, backend.power_off(UNKNOWN))
        with pytest.raises(MachineNotFound, match=UNKNOWN):
            await within(10, backend.restore_and_start(UNKNOWN, ""))

    async def test_unknown_snapshot(self, backend: MachineryBackend, rig: Rig) -> None:
        if not rig.has_named_snapshots:
            explained(rig, "has_named_snapshots")
            return
        with pytest.raises(SnapshotNotFound, match=UNKNOWN):
            await within(rig.timeout, backend.restore_and_start(rig.labels[0], UNKNOWN))
        await within(10, backend.power_off(rig.labels[0]))
        await start(backend, rig)

    # -- concurrency ----------------------------------------------------------------------------

    async def test_state_during_start(self, backend: MachineryBackend, rig: Rig) -> None:
        label = rig.labels[0]
        starting = asyncio.ensure_future(backend.restore_and_start(label, rig.snapshot))
        try:
            answers = 0
            while not starting.done() or not answers:
                assert isinstance(await within(5, backend.state(label)), MachineState)
                answers += 1
                await asyncio.wait({starting}, timeout=0.05)
        finally:
            await within(rig.timeout, starting)
        assert await within(5, backend.state(label)) is MachineState.RUNNING

    async def test_power_off_mends_a_cancelled_start(
        self, backend: MachineryBackend, rig: Rig
    ) -> None:
        label = rig.labels[0]
        for after in rig.cancel_after:
            starting = asyncio.ensure_future(backend.restore_and_start(label, rig.snapshot))
            await asyncio.wait({starting}, timeout=after)
            starting.cancel()
            ended, _ = await asyncio.wait({starting}, timeout=5)
            assert ended, f"restore_and_start cancelled after {after} s did not end within 5 s"
            if not starting.cancelled():
                starting.result()  # it may have been quicker than the cancel, it may not fail
            await within(10, backend.power_off(label))
            assert await within(5, backend.state(label)) is MachineState.POWEROFF
        await start(backend, rig)

    async def test_power_off_while_starting(self, backend: MachineryBackend, rig: Rig) -> None:
        label = rig.labels[0]
        starting = asyncio.ensure_future(backend.restore_and_start(label, rig.snapshot))
        await asyncio.wait({starting}, timeout=rig.cancel_after[-1])
        await within(10 + rig.timeout, backend.power_off(label))
        with contextlib.suppress(MachineryError):
            await within(rig.timeout, starting)
        await within(10, backend.power_off(label))
        assert await within(5, backend.state(label)) is MachineState.POWEROFF

    async def test_two_machines_at_once(self, backend: MachineryBackend, rig: Rig) -> None:
        if len(rig.labels) < 2:
            explained(rig, "second_machine")
            return
        pair = rig.labels[:2]
        await asyncio.gather(*(start(backend, rig, label) for label in pair))
        for label in pair:
            assert await within(5, backend.state(label)) is MachineState.RUNNING
        await within(10, backend.power_off(pair[0]))
        assert await within(5, backend.state(pair[0])) is MachineState.POWEROFF
        assert await within(5, backend.state(pair[1])) is MachineState.RUNNING
        await within(10, backend.power_off(pair[1]))

    # -- the point of it all --------------------------------------------------------------------

    async def test_a_revert_leaves_nothing(self, backend: MachineryBackend, rig: Rig) -> None:
        if rig.write_inside is None or rig.read_inside is None:
            explained(rig, "write_inside", "read_inside")
            return
        label = rig.labels[0]
        await start(backend, rig)
        await within(rig.timeout, rig.write_inside(label, MARK))
        assert await within(rig.timeout, rig.read_inside(label)) == MARK
        await start(backend, rig)
        assert await within(rig.timeout, rig.read_inside(label)) == ""
        await within(rig.timeout, rig.write_inside(label, MARK))
        await within(10, backend.power_off(label))
        await start(backend, rig)
        assert await within(rig.timeout, rig.read_inside(label)) == ""

    async def test_a_machine_that_died_is_seen_and_mended(
        self, backend: MachineryBackend, rig: Rig
    ) -> None:
        if rig.kill_machine is None:
            explained(rig, "kill_machine")
            return
        label = rig.labels[0]
        await start(backend, rig)
        await within(rig.timeout, rig.kill_machine(label))
        gone = (MachineState.ABORTED, MachineState.POWEROFF)
        await eventually(rig, lambda: backend.state(label), lambda state: state in gone)
        await within(10, backend.power_off(label))
        assert await within(5, backend.state(label)) is MachineState.POWEROFF
        await start(backend, rig)

    async def test_hypervisor_gone_and_back(self, backend: MachineryBackend, rig: Rig) -> None:
        if rig.hypervisor_down is None or rig.hypervisor_up is None:
            explained(rig, "hypervisor_down", "hypervisor_up")
            return
        label = rig.labels[0]
        await within(rig.timeout, rig.hypervisor_down())
        try:
            with pytest.raises(BackendUnavailable):
                await within(5, backend.state(label))
            with pytest.raises(BackendUnavailable):
                await within(5, backend.labels())
            with pytest.raises(BackendUnavailable):
                await within(rig.timeout, backend.restore_and_start(label, rig.snapshot))
        finally:
            await within(rig.timeout, rig.hypervisor_up())
        await eventually(rig, lambda: backend.state(label), lambda _: True)
        await within(10, backend.power_off(label))
        await start(backend, rig)

    async def test_open_without_a_hypervisor_says_so(self, rig: Rig) -> None:
        if rig.hypervisor_down is None or rig.hypervisor_up is None:
            explained(rig, "hypervisor_down", "hypervisor_up")
            return
        backend = rig.make()
        await within(rig.timeout, rig.hypervisor_down())
        try:
            with pytest.raises(BackendUnavailable):
                await within(30, backend.open())
        finally:
            await within(10, backend.close())
            await within(rig.timeout, rig.hypervisor_up())

    # -- capabilities ---------------------------------------------------------------------------

    async def test_what_it_cannot_do_it_refuses(
        self, backend: MachineryBackend, rig: Rig, tmp_path: Path
    ) -> None:
        arguments: dict[str, tuple[object, ...]] = {
            "take_snapshot": ("conformance",),
            "screenshot": (tmp_path / "screen",),
            "dump_memory": (tmp_path / "memory",),
            "start_capture": (tmp_path / "capture",),
        }
        await start(backend, rig)
        for capability, methods in OPTIONAL_CALLS.items():
            if capability in backend.capabilities:
                continue
            for method in methods:
                label = () if method == "watch" else (rig.labels[0],)
                with pytest.raises(NotSupported):
                    await use(backend, method, (*label, *arguments.get(method, ())))
        assert list(tmp_path.iterdir()) == []
        assert await within(5, backend.state(rig.labels[0])) is MachineState.RUNNING

    async def test_reboot(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.REBOOT):
            return
        label = rig.labels[0]
        with pytest.raises(WrongState):
            await within(10, backend.reboot(label))
        await start(backend, rig)
        await within(10, backend.reboot(label))
        assert await within(5, backend.state(label)) is MachineState.RUNNING

    async def test_pause(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.PAUSE):
            return
        label = rig.labels[0]
        with pytest.raises(WrongState):
            await within(10, backend.pause(label))
        with pytest.raises(WrongState):
            await within(10, backend.resume(label))
        await start(backend, rig)
        with pytest.raises(WrongState):
            await within(10, backend.resume(label))
        for _ in range(2):
            await within(10, backend.pause(label))
            assert await within(5, backend.state(label)) is MachineState.PAUSED
        await within(10, backend.resume(label))
        assert await within(5, backend.state(label)) is MachineState.RUNNING
        await within(10, backend.pause(label))
        await within(10, backend.power_off(label))
        assert await within(5, backend.state(label)) is MachineState.POWEROFF

    async def test_take_snapshot(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.SNAPSHOT):
            return
        label = rig.labels[0]
        with pytest.raises(WrongState):
            await within(10, backend.take_snapshot(label, "conformance"))
        await start(backend, rig)
        if rig.write_inside is not None:
            await within(rig.timeout, rig.write_inside(label, MARK))
        for _ in range(2):  # the second replaces the first
            await within(rig.timeout, backend.take_snapshot(label, "conformance"))
            await within(10, backend.power_off(label))
            await within(rig.timeout, backend.restore_and_start(label, "conformance"))
        assert await within(5, backend.state(label)) is MachineState.RUNNING
        if rig.read_inside is not None:
            assert await within(rig.timeout, rig.read_inside(label)) == MARK

    async def test_screenshot(self, backend: MachineryBackend, rig: Rig, tmp_path: Path) -> None:
        if not has(backend, Capability.SCREENSHOT):
            return
        label, path = rig.labels[0], tmp_path / "screen"
        with pytest.raises(MachineryError):
            await within(5, backend.screenshot(label, path))
        assert list(tmp_path.iterdir()) == []
        await start(backend, rig)
        await within(5, backend.screenshot(label, path))
        assert path.read_bytes().startswith((b"\x89PNG\r\n\x1a\n", b"P6"))

    async def test_dump_memory(self, backend: MachineryBackend, rig: Rig, tmp_path: Path) -> None:
        if not has(backend, Capability.MEMORY_DUMP):
            return
        label, path = rig.labels[0], tmp_path / "memory"
        with pytest.raises(WrongState):
            await within(10, backend.dump_memory(label, path))
        await start(backend, rig)
        await within(rig.timeout, backend.dump_memory(label, path))
        assert path.stat().st_size > 0
        assert await within(5, backend.state(label)) is MachineState.RUNNING

    async def test_capture(self, backend: MachineryBackend, rig: Rig, tmp_path: Path) -> None:
        if not has(backend, Capability.CAPTURE):
            return
        label = rig.labels[0]
        await start(backend, rig)
        await within(10, backend.start_capture(label, tmp_path / "first"))
        await within(10, backend.stop_capture(label))
        assert is_pcap(tmp_path / "first")
        await within(10, backend.start_capture(label, tmp_path / "second"))
        await within(10, backend.power_off(label))
        await within(10, backend.stop_capture(label))
        assert is_pcap(tmp_path / "second")

    async def test_watch(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.WATCH):
            return
        label = rig.labels[0]
        await within(10, backend.power_off(label))
        async with watching(backend) as events:
            missing = {machine.label for machine in backend.config.machines}
            while missing:
                missing.discard((await within(rig.timeout, events.get())).label)
            await start(backend, rig)
            await expect(events, rig, label, MachineState.RUNNING)
            await within(10, backend.power_off(label))
            await expect(events, rig, label, MachineState.POWEROFF)
            if rig.kill_machine is not None:
                await start(backend, rig)
                await expect(events, rig, label, MachineState.RUNNING)
                await within(rig.timeout, rig.kill_machine(label))
                await expect(events, rig, label, MachineState.ABORTED, MachineState.POWEROFF)

    async def test_watch_can_begin_again(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.WATCH):
            return
        await start(backend, rig)
        for _ in range(2):
            async with watching(backend) as events:
                await expect(events, rig, rig.labels[0], MachineState.RUNNING)

    async def test_address(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.ADDRESS):
            return
        label = rig.labels[0]
        before = backend.address(label)
        await start(backend, rig)
        assert backend.address(label) == before
        assert before.agent.startswith("unix:/") or before.agent.rpartition(":")[2].isdecimal()
        assert before.resultserver_ip
        assert 0 < before.resultserver_port < 1 << 16
        for path in before.sockets.values():
            assert path.is_absolute()
            assert len(bytes(path)) <= MAX_SOCKET_NAME
        if len(rig.labels) > 1:
            assert backend.address(rig.labels[1]).agent != before.agent

    async def test_console(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.CONSOLE):
            return
        await start(backend, rig)
        text = await within(10, backend.console(rig.labels[0]))
        assert isinstance(text, bytes)
        assert len(text) <= MAX_CONSOLE

    async def test_inspect(self, backend: MachineryBackend, rig: Rig) -> None:
        if not has(backend, Capability.INSPECT):
            return
        label = rig.labels[0]
        await within(10, backend.power_off(label))
        facts = await within(5, backend.inspect(label))
        assert facts.faults == ()
        if rig.has_named_snapshots:
            assert rig.snapshot in facts.snapshots
        assert await within(5, backend.state(label)) is MachineState.POWEROFF
        for label in rig.labels[1:]:
            other = await within(5, backend.inspect(label))
            assert not facts.uuid or other.uuid != facts.uuid, f"{label} is another machine"
        with pytest.raises(MachineNotFound, match=UNKNOWN):
            await within(5, backend.inspect(UNKNOWN))
