"""The fake hypervisor: machines, power, snapshots, events, and an inspector of what happened."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from cuckoo_api.machinery import (
    BackendUnavailable,
    GuestAddress,
    MachineFacts,
    MachineNotFound,
    MachineryError,
    MachineState,
    SnapshotNotFound,
    StateChange,
    WrongState,
)
from cuckoo_api.testing.guest import FakeGuest
from cuckoo_api.testing.modes import Call, Dies, Failing, FakeMachine, Mode, Never, Slow, Snapshot

T = TypeVar("T")

ANY = "*"
"""In place of a label or a call: all of them."""


class FakeHypervisor:
    """A hypervisor in memory that outlives the backends that talk to it.

    Use it as an async context manager; leaving it cuts all power. ``sleep`` is the clock of
    ``Slow`` and ``Dies``. The methods down to :meth:`until` set the scene and tell what truly
    happened; the rest is what :class:`~cuckoo_api.testing.backend.FakeBackend` orders.
    """

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.machines: dict[str, FakeMachine] = {}
        self.max_parallel = 0
        """The most machines that ever ran at once."""
        self.max_starting = 0
        """The most ``restore_and_start`` calls that were ever under way at once."""
        self.open_backends = 0
        """Backends that were opened and not closed."""
        self._sleep = sleep
        self._starting = 0
        self._log: list[Call] = []
        self._modes: dict[tuple[str, str], Mode] = {}
        self._failures: dict[tuple[str, str], int] = {}
        self._down: asyncio.Event = asyncio.Event()
        self._down_reason = ""
        self._streams: set[asyncio.Queue[StateChange | MachineryError | None]] = set()
        self._zombies: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._folder: Path | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for machine in self.machines.values():
            if machine.guest is not None:
                await machine.guest.power_off()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where the guests' sockets lie: short, for a socket's name has 107 bytes at most."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fake-"))
        return self._folder

    # -- the scene ------------------------------------------------------------------------------

    def add(
        self,
        label: str,
        *,
        snapshots: dict[str, Snapshot] | None = None,
        guest: FakeGuest | None = None,
        with_guest: bool = True,
    ) -> FakeMachine:
        """Define a machine, off; its first snapshot (default: an empty ``clean``) is current."""
        kept = {"clean": Snapshot()} if snapshots is None else snapshots
        if guest is None and with_guest:
            guest = FakeGuest()
        machine = FakeMachine(label, kept, next(iter(kept), ""), guest)
        self.machines[label] = machine
        return machine

    def remove(self, label: str) -> None:
        """Undefine a machine that is off."""
        del self.machines[label]

    def behave(self, call: str, mode: Mode | None, *, label: str = ANY) -> None:
        """From now on ``call`` (a method's name, or ``*``) does this for ``label``; None: well."""
        self._failures.pop((label, call), None)
        if mode is None:
            self._modes.pop((label, call), None)
        else:
            self._modes[label, call] = mode

    async def kill(self, label: str, reason: str = "the process was killed") -> None:
        """The machine ends without being asked to: ABORTED."""
        machine = self.machines[label]
        if machine.state in (MachineState.RUNNING, MachineState.PAUSED):
            await self._stop(machine, MachineState.ABORTED, reason)

    async def shut_down(self, label: str) -> None:
        """The guest switches its running machine off, as a sample may."""
        await self._stop(self.require(label, MachineState.RUNNING), MachineState.POWEROFF)

    async def start_by_hand(self, label: str) -> None:
        """Somebody else starts the machine, from its disk."""
        await self._start(self.machines[label])

    async def down(self, reason: str = "connection refused") -> None:
        """The hypervisor stops answering: every call and every stream of events fails.

        What runs goes on running, as it does when a management daemon dies.
        """
        self._down_reason = reason
        self._down.set()
        for stream in list(self._streams):
            stream.put_nowait(BackendUnavailable(reason))
        self._notify()

    async def up(self) -> None:
        """The hypervisor answers again."""
        self._down.clear()

    def end_streams(self) -> None:
        """The streams of events end without an error; all else goes on."""
        for stream in list(self._streams):
            stream.put_nowait(None)

    async def rise(self) -> list[str]:
        """Orders that were given up (``Never(zombie=True)``) take effect now; their labels."""
        zombies, self._zombies = self._zombies, []
        for _, effect in zombies:
            await effect()
        return [label for label, _ in zombies]

    # -- the inspector --------------------------------------------------------------------------

    def starts(self, label: str) -> int:
        """How often the machine truly began to run."""
        return sum(
            state is MachineState.RUNNING and before is not MachineState.PAUSED
            for before, state in zip(
                [None, *self.history(label)], self.history(label), strict=False
            )
        )

    def history(self, label: str) -> list[MachineState]:
        """Every state that the machine went to, in order."""
        return list(self.machines[label].history)

    def calls(self, method: str = "", label: str = "") -> list[Call]:
        """What backends asked, in order; narrowed by method and label where given."""
        return [
            call for call in self._log if method in ("", call.method) and label in ("", call.label)
        ]

    def running(self) -> list[str]:
        """The labels of the machines that run, or are paused, now."""
        on = (MachineState.RUNNING, MachineState.PAUSED)
        return [machine.label for machine in self.machines.values() if machine.state in on]

    @property
    def watched(self) -> int:
        """How many streams of events are open."""
        return len(self._streams)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Return once ``happened()`` is true; it is asked after each event, not by the clock."""
        if happened():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (happened, future)
        self._waiters.append(entry)
        try:
            await future
        finally:
            self._waiters.remove(entry)

    # -- what backends order --------------------------------------------------------------------

    async def perform(self, method: str, label: str, effect: Callable[[], Awaitable[T]]) -> T:
        """Do one call of a backend in the mode that was set for it, and keep a record."""
        call = Call(method, label)
        self._log.append(call)
        self._notify()
        try:
            result = await self._in_mode(method, label, effect)
        except asyncio.CancelledError:
            call.outcome = "cancelled"
            raise
        except MachineryError as exc:
            call.outcome = type(exc).__name__
            raise
        else:
            call.outcome = "done"
            return result
        finally:
            self._notify()

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        """Revert, then run."""
        self._starting += 1
        self.max_starting = max(self.max_starting, self._starting)
        try:
            await self.perform("restore_and_start", label, lambda: self._restore(label, snapshot))
        finally:
            self._starting -= 1

    async def _restore(self, label: str, snapshot: str) -> None:
        machine = self.machines[label]
        name = snapshot or machine.current
        if name and name not in machine.snapshots:
            raise SnapshotNotFound(
                f"{label}: no snapshot {name!r}; it has: {', '.join(machine.snapshots) or 'none'}"
            )
        await self._stop(machine, MachineState.POWEROFF)
        machine.memory = {}
        if name:
            machine.disk = dict(machine.snapshots[name].disk)
            machine.memory = dict(machine.snapshots[name].memory)
        await self._start(machine)

    async def power_off(self, label: str) -> None:
        """Cut the power, also of what aborted."""

        async def effect() -> None:
            await self._stop(self.machines[label], MachineState.POWEROFF)

        await self.perform("power_off", label, effect)

    async def reboot(self, label: str) -> None:
        """The guest starts again on the same disk."""

        await self.perform("reboot", label, lambda: self._restart(label))

    async def _restart(self, label: str) -> None:
        machine = self.require(label, MachineState.RUNNING)
        machine.memory = {}
        if machine.guest is not None:
            await machine.guest.power_off()
            await self._boot(machine)

    async def set_paused(self, label: str, *, paused: bool) -> None:
        """Stop the guest's clock, or let it go on."""
        states = (MachineState.RUNNING, MachineState.PAUSED)
        source, target = states if paused else states[::-1]

        async def effect() -> None:
            machine = self.require(label, *(states if paused else (source,)))
            if machine.state is not target:
                self._go(machine, target)
                if machine.guest is not None:
                    machine.guest.freeze(frozen=paused)

        await self.perform("pause" if paused else "resume", label, effect)

    def address(self, label: str, ip: str, ports: Mapping[str, int]) -> GuestAddress:
        """Where the guest is reached, and finds the host's services at ``ip`` and their ports."""
        self.check_label(label)
        guest = self.machines[label].guest
        if guest is None:
            return GuestAddress(f"unix:{self.folder / label}.nobody", ip, ports["results"])
        sockets = guest.sockets(self.folder, label, ip, ports)
        return GuestAddress(guest.address(self.folder, label), ip, ports["results"], sockets)

    def facts(self, label: str) -> MachineFacts:
        """What :meth:`MachineryBackend.inspect` tells."""
        machine = self.machines[label]
        return MachineFacts(
            snapshots=tuple(machine.snapshots),
            current_snapshot=machine.current,
            ip=machine.ip,
            uuid=machine.uuid,
            faults=tuple(machine.faults),
        )

    def require(self, label: str, *states: MachineState) -> FakeMachine:
        """The machine, if it is in one of ``states``; else WrongState."""
        machine = self.machines[label]
        if machine.state not in states:
            raise WrongState(f"{label}: the machine is {machine.state}, not {' or '.join(states)}")
        return machine

    def check(self, label: str = "") -> None:
        """BackendUnavailable while the world is down, MachineNotFound for an unknown label."""
        if self._down.is_set():
            raise BackendUnavailable(self._down_reason)
        if label:
            self.check_label(label)

    def check_label(self, label: str) -> None:
        """MachineNotFound for an unknown label."""
        if label not in self.machines:
            raise MachineNotFound(
                f"no machine {label!r}; there are: {', '.join(self.machines) or 'none'}"
            )

    def subscribe(self) -> asyncio.Queue[StateChange | MachineryError | None]:
        """A stream of events: an error fails it, None ends it."""
        stream: asyncio.Queue[StateChange | MachineryError | None] = asyncio.Queue()
        self._streams.add(stream)
        self._notify()
        return stream

    def unsubscribe(self, stream: asyncio.Queue[StateChange | MachineryError | None]) -> None:
        """Close a stream."""
        self._streams.discard(stream)
        self._notify()

    # -- inside ---------------------------------------------------------------------------------

    async def _in_mode(self, method: str, label: str, effect: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(0)  # no hypervisor answers before the loop has turned
        mode = self._mode(method, label)
        if isinstance(mode, Failing):
            raise mode.error
        if not isinstance(mode, Never):
            self.check(label)
        if isinstance(mode, Slow):
            await self._while_up(self._wait_slowly(mode))
        elif isinstance(mode, Never):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if mode.zombie:
                    self._zombies.append((label, effect))
                raise
        self.check(label)
        result = await effect()
        if isinstance(mode, Dies):
            self._spawn(self._die(label, mode.after))
        return result

    def _mode(self, method: str, label: str) -> Mode | None:
        for key in ((label, method), (label, ANY), (ANY, method), (ANY, ANY)):
            mode = self._modes.get(key)
            if mode is None:
                continue
            if isinstance(mode, Failing) and mode.times is not None:
                self._failures[key] = self._failures.get(key, 0) + 1
                if self._failures[key] > mode.times:
                    continue
            return mode
        return None

    async def _wait_slowly(self, mode: Slow) -> None:
        if mode.until is not None:
            await mode.until.wait()
        else:
            await self._sleep(mode.seconds)

    async def _while_up(self, work: Coroutine[Any, Any, None]) -> None:
        waits = [asyncio.ensure_future(work), asyncio.ensure_future(self._down.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _die(self, label: str, after: float) -> None:
        await self._sleep(after)
        await self.kill(label)

    async def _start(self, machine: FakeMachine) -> None:
        self._go(machine, MachineState.RUNNING)
        self.max_parallel = max(self.max_parallel, len(self.running()))
        await self._boot(machine)

    async def _boot(self, machine: FakeMachine) -> None:
        if machine.guest is not None:
            await machine.guest.power_on(
                machine.disk,
                self.folder,
                machine.label,
                lambda: self._spawn(self.kill(machine.label, "the guest cut its power")),
                lambda: self._spawn(self._restart_itself(machine)),
            )

    async def _restart_itself(self, machine: FakeMachine) -> None:
        if machine.state is MachineState.RUNNING:  # else its power was cut before it began
            await self._restart(machine.label)

    async def _stop(self, machine: FakeMachine, state: MachineState, reason: str = "") -> None:
        if machine.state is not state:
            if machine.guest is not None:
                machine.guest.freeze(frozen=True)  # nothing of it is heard after the event
            self._go(machine, state, reason)
            if machine.guest is not None:
                await machine.guest.power_off()

    def _go(self, machine: FakeMachine, state: MachineState, reason: str = "") -> None:
        machine.state = state
        machine.history.append(state)
        if not self._down.is_set():
            for stream in self._streams:
                stream.put_nowait(StateChange(machine.label, state, reason))
        self._notify()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notify(self) -> None:
        for happened, future in list(self._waiters):
            if not future.done() and happened():
                future.set_result(None)
