"""The backend: the contract's calls, each asked of the server in a thread of a bounded pool."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyVmomi import vmodl

from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    Capability,
    MachineFacts,
    MachineNotFound,
    MachineryBackend,
    MachineryError,
    MachineState,
    OperationTimedOut,
    StateChange,
)
from cuckoo_machinery_vsphere.batch import Batch
from cuckoo_machinery_vsphere.facts import facts_of, facts_wanted
from cuckoo_machinery_vsphere.faults import LOST, translated
from cuckoo_machinery_vsphere.inventory import (
    Entry,
    Inventory,
    Properties,
    read_inventory,
    read_machines,
)
from cuckoo_machinery_vsphere.operations import OFF, ON, SUSPENDED, Machine, refuse_unreachable
from cuckoo_machinery_vsphere.session import Login, Session
from cuckoo_machinery_vsphere.settings import read_server
from cuckoo_machinery_vsphere.tasks import Order
from cuckoo_machinery_vsphere.updates import Update, Updates

T = TypeVar("T")

CALL_THREADS = 8
ORDER_THREADS = 64
"""Orders under way at once. Each has a thread, which waits most of the time."""
OPEN_TIMEOUT = 28.0
PROMPT = 4.5
"""Seconds for what the contract wants within 5."""
CLOSE_TIMEOUT = 5.0
"""Seconds for orders to be given up, and a temporary snapshot to be removed."""
GOODBYE_TIMEOUT = 2.0
STATES = {
    ON: MachineState.RUNNING,
    OFF: MachineState.POWEROFF,
    SUSPENDED: MachineState.PAUSED,
}
_GLANCE = ["name", "runtime.powerState", "runtime.connectionState"]


class VsphereBackend(MachineryBackend):
    """vCenter or ESXi.

    What vSphere has for a pause is its suspension, which writes the memory to the disk and ends
    the machine's process: neither screen nor memory can be had of a machine meanwhile.
    """

    capabilities = (
        Capability.REBOOT
        | Capability.PAUSE
        | Capability.SNAPSHOT
        | Capability.SCREENSHOT
        | Capability.MEMORY_DUMP
        | Capability.WATCH
        | Capability.INSPECT
    )

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self._opened: Session | None = None
        self._inventory = Inventory(())
        self._calls = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="vsphere-call")
        self._orders = ThreadPoolExecutor(ORDER_THREADS, thread_name_prefix="vsphere-order")
        self._under_way: defaultdict[str, dict[asyncio.Future[Any], Machine]] = defaultdict(dict)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._streams: dict[Updates, asyncio.Queue[Update | MachineryError | None]] = {}
        self._glances = Batch(self._read(lambda _: _GLANCE))
        self._facts = Batch(self._read(facts_wanted))
        self._inventories = Batch(self._read_inventory)

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        self._opened = Session(read_server(self.config.options))
        # what an interrupted dump has left, the machine's next start removes
        await self._within(OPEN_TIMEOUT, self._refreshed())

    async def close(self) -> None:
        for stream in list(self._streams):
            await self._stop(stream)
        futures = [future for some in self._under_way.values() for future in some]
        for machines in self._under_way.values():
            for machine in machines.values():
                machine.order.give_up()
        if futures:
            await asyncio.wait(futures, timeout=CLOSE_TIMEOUT)
        session, self._opened = self._opened, None
        if session is not None:
            await self._briefly(session.close)
        for batch in (self._glances, self._facts, self._inventories):
            batch.close()
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._orders.shutdown(wait=False, cancel_futures=True)

    async def _briefly(self, goodbye: Callable[[], None]) -> None:
        """Say it to the server, which may not be listening any more."""
        said = asyncio.get_running_loop().run_in_executor(self._calls, goodbye)
        await asyncio.wait({said}, timeout=GOODBYE_TIMEOUT)

    async def labels(self) -> list[str]:
        inventory = await self._within(PROMPT, self._refreshed())
        return inventory.labels(machine.label for machine in self.config.machines)

    async def state(self, label: str) -> MachineState:
        _, has = await self._within(PROMPT, self._found(label, self._glances))
        refuse_unreachable(label, has)
        return STATES[has["runtime.powerState"]]

    async def inspect(self, label: str) -> MachineFacts:
        return facts_of(*await self._within(PROMPT, self._found(label, self._facts)))

    # -- orders ---------------------------------------------------------------------------------

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        await self._order(label, lambda machine: machine.restore_and_start(snapshot))

    async def power_off(self, label: str) -> None:
        await self._order(label, Machine.power_off, first=True)

    async def reboot(self, label: str) -> None:
        await self._order(label, Machine.reset)

    async def pause(self, label: str) -> None:
        await self._order(label, Machine.suspend)

    async def resume(self, label: str) -> None:
        await self._order(label, Machine.resume)

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        await self._order(label, lambda machine: machine.take_snapshot(snapshot))

    async def dump_memory(self, label: str, path: Path) -> None:
        await self._order(label, lambda machine: machine.dump_memory(path))

    async def screenshot(self, label: str, path: Path) -> None:
        try:
            async with asyncio.timeout(PROMPT):
                await self._order(label, lambda machine: machine.screenshot(path), alone=False)
        except TimeoutError as exc:
            raise OperationTimedOut(f"{label}: no picture within {PROMPT:g} s") from exc

    async def _order(
        self,
        label: str,
        work: Callable[[Machine], None],
        *,
        first: bool = False,
        alone: bool = True,
    ) -> None:
        """Do something to a machine, in a thread.

        Orders for one machine follow each other (``alone``); one that goes ``first`` lets those
        before it give up. So does a cancel. A thread cannot be stopped, but one that was told to
        give up sends nothing more, and what comes after it waits until it has ended.
        """
        entry, _ = await self._found(label, self._glances)
        others = self._under_way[entry.key]
        machine = Machine(self._session, label, entry, Order(first=first))
        if first:
            for other in others.values():
                if not other.order.first:
                    other.order.give_up()

        def run() -> None:
            with self._locks[entry.key] if alone else contextlib.nullcontext():
                machine.order.check()
                try:
                    work(machine)
                except (vmodl.MethodFault, *LOST) as exc:
                    raise translated(exc, label) from exc

        future = asyncio.get_running_loop().run_in_executor(self._orders, run)
        others[future] = machine
        future.add_done_callback(lambda done: _ended(done, others))
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            machine.order.give_up()
            raise

    # -- watching -------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[StateChange]:
        return self._watch()

    async def _watch(self) -> AsyncGenerator[StateChange, None]:
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[Update | MachineryError | None] = asyncio.Queue()

        def tell(update: Update | MachineryError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(updates.put_nowait, update)

        stream = Updates(self._session, tell)
        self._streams[stream] = updates
        stream.start()
        try:
            states: dict[str, tuple[str, str]] = {}
            told: dict[str, StateChange] = {}
            while (update := await updates.get()) is not None:
                if isinstance(update, MachineryError):
                    raise update
                if update.first:
                    states, told = {}, {}
                states |= update.states
                if update.moved:
                    await self._refreshed()
                for machine in self.config.machines:
                    change = self._change(machine.label, states)
                    if told.get(machine.label) != change:
                        told[machine.label] = change
                        yield change
        finally:
            await self._stop(stream)

    def _change(self, label: str, states: dict[str, tuple[str, str]]) -> StateChange:
        """What a machine does by what the stream has told so far."""
        try:
            power, connection = states.get(self._inventory.find(label).key, ("", ""))
            has = {"runtime.powerState": power, "runtime.connectionState": connection}
            refuse_unreachable(label, has)
        except MachineryError as exc:
            return StateChange(label, MachineState.UNREACHABLE, str(exc))
        return StateChange(label, STATES[power])

    async def _stop(self, stream: Updates) -> None:
        updates = self._streams.pop(stream, None)
        if updates is not None:
            updates.put_nowait(None)
            await self._briefly(stream.stop)

    # -- asking ---------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise BackendUnavailable(f"{self.config.name}: the backend is not open")
        return self._opened

    async def _found(self, label: str, about: Batch[Properties]) -> tuple[Entry, Properties]:
        """A machine, and something about it. One that is no longer called so is looked for anew."""
        try:
            entry = self._inventory.find(label)
        except MachineNotFound:
            entry = (await self._refreshed()).find(label)
        has = await about.get(entry.key)
        if has is None or has.get("name") != entry.name:
            entry = (await self._refreshed()).find(label)
            has = await about.get(entry.key)
        if has is None:
            raise MachineNotFound(f"vSphere has no machine {label!r} any more")
        return entry, has

    async def _refreshed(self) -> Inventory:
        """All machines, read now."""
        self._inventory = await self._inventories.get("") or Inventory(())
        return self._inventory

    async def _read_inventory(self, _: list[str]) -> dict[str, Inventory]:
        return {"": await self._asked(read_inventory)}

    def _read(
        self, wanted: Callable[[int], list[str]]
    ) -> Callable[[list[str]], Awaitable[dict[str, Properties]]]:
        """A question of some properties, which may depend on how many machines are asked for."""

        def read(keys: list[str]) -> Awaitable[dict[str, Properties]]:
            return self._asked(lambda login: read_machines(login, keys, wanted(len(keys))))

        return read

    async def _asked(self, ask: Callable[[Login], T]) -> T:
        session = self._session

        def call() -> T:
            try:
                return session.read(ask)
            except (vmodl.MethodFault, *LOST) as exc:
                raise translated(exc, session.server.name) from exc

        return await asyncio.get_running_loop().run_in_executor(self._calls, call)

    async def _within(self, seconds: float, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError as exc:
            name = self._session.server.name
            raise BackendUnavailable(f"{name} did not answer within {seconds:g} s") from exc


def _ended(done: asyncio.Future[None], others: dict[asyncio.Future[Any], Machine]) -> None:
    others.pop(done, None)
    if not done.cancelled():
        done.exception()  # nobody may be left to hear it
