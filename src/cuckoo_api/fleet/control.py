"""All machines of all backends: who may use which, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec
import structlog

from cuckoo_api.fleet.backends import Backends
from cuckoo_api.fleet.deadlines import Deadlines, to_the_end
from cuckoo_api.fleet.exchange import Exchange, Left
from cuckoo_api.fleet.hypervisor import NO_LIMIT, Hypervisor
from cuckoo_api.fleet.leases import Lease
from cuckoo_api.fleet.setup import TapsOf, backend_configs, machine_row, no_taps
from cuckoo_api.fleet.slots import Slot, slots_of
from cuckoo_api.fleet.upkeep import Upkeep
from cuckoo_api.machinery import (
    BackendConfig,
    MachineryError,
    MachineryPlugin,
    MachineState,
    StateChange,
)
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Status
from cuckoo_api.settings import Settings
from cuckoo_api.store import Store

log = structlog.get_logger()


class Fleet:
    """The machines. A machine is free, leased to one task, or in quarantine with a reason.

    The core's promises about machines live here and in :class:`Lease`: every call has a
    deadline, and no machine is given to the next task unless the hypervisor has confirmed that
    it is off. One that cannot be confirmed goes into quarantine and is tried again, later and
    later, until it can.
    """

    def __init__(
        self,
        settings: Settings,
        plugins: Mapping[str, MachineryPlugin],
        store: Store,
        *,
        deadlines: Deadlines | None = None,
        taps_of: TapsOf = no_taps,
    ) -> None:
        self._settings = settings
        self._plugins = plugins
        self._store = store
        self._taps_of = taps_of
        self._given_deadlines = deadlines
        self._deadlines = deadlines or Deadlines.of(settings.timeouts)
        self._hypervisors: list[Hypervisor] = []
        self._serving: dict[Hypervisor, asyncio.Task[None]] = {}
        self._slots: dict[str, Slot] = {}
        self._starts = asyncio.Semaphore(settings.cuckoo.max_vmstartup_count or NO_LIMIT)
        self._upkeep = Upkeep(store, self._deadlines, self._slots)
        self._backends = Backends(
            store, self._upkeep, self._slots, on_opened=lambda: self.on_opened()
        )
        self._exchange = Exchange(
            self._slots, self._hypervisors, shut=self._shut, bring_in=self._bring_in_later
        )
        self._exchanging: asyncio.Task[None] | None = None
        self.on_opened: Callable[[], Awaitable[None]] = _nothing
        """Awaited when a backend has been opened, before its machines are given out."""

    # -- start and end --------------------------------------------------------------------------

    async def open(self) -> None:
        """Open every active backend and look at every configured machine.

        Raises ConfigError for what no retry can mend: a plugin that is not there, names given
        twice. A backend that cannot be opened puts its machines in quarantine with the reason
        and is tried again in the background; the others work.
        """
        configs = backend_configs(self._settings, self._plugins, self._taps_of)
        self._exchange.wanted = {config.name: config for config in configs}
        # before the sync, which forgets quarantines: such a machine may run because of us
        left = {
            row.name: row.quarantine
            for row in await self._store.machines.list()
            if row.locked or row.quarantine is not None
        }
        try:
            await self._bring_in(configs, left)
        except BaseException:
            await self.close()
            raise

    async def reconfigure(self, settings: Settings) -> None:
        """Take other settings on. Raises ConfigError, with nothing changed, where they cannot work.

        New limits count from the next start of a machine on, tags and platforms from the next
        task. A machinery of which more has changed is opened anew when its last task has ended, in
        the background: new machines come, those that are gone go.
        """
        configs = backend_configs(settings, self._plugins, self._taps_of)
        wanted = {config.name: config for config in configs}
        before, self._settings, self._exchange.wanted = self._settings, settings, wanted
        if before.cuckoo.max_vmstartup_count != settings.cuckoo.max_vmstartup_count:
            self._starts = asyncio.Semaphore(settings.cuckoo.max_vmstartup_count or NO_LIMIT)
        if self._given_deadlines is None:
            self._deadlines = self._upkeep.deadlines = Deadlines.of(settings.timeouts)
        for hypervisor in self._hypervisors:
            hypervisor.deadlines = self._deadlines
            if (section := settings.machinery.get(hypervisor.name)) is not None:
                hypervisor.limit_starts(section.max_vmstartup_count)
            if self._exchange.adopt(hypervisor):
                await self._describe(hypervisor)
        self._exchange.hold()
        if self._exchanging is None or self._exchanging.done():
            self._exchanging = self._upkeep.spawn(self._exchange.run())
        self._upkeep.changed.set()

    async def settled(self) -> None:
        """Return once everything is as the last :meth:`reconfigure` wants it."""
        if self._exchanging is not None:
            await asyncio.wait({self._exchanging})

    async def _describe(self, hypervisor: Hypervisor) -> None:
        configs = {config.name: config for config in hypervisor.config.machines}
        for slot in slots_of(self._slots, hypervisor):
            slot.config = configs[slot.machine.name]
            row = machine_row(slot.config, hypervisor.name)
            slot.machine = msgspec.structs.replace(row, id=slot.machine.id)
            await self._store.machines.describe(slot.machine)

    async def recover(self) -> None:
        """Take back what an earlier process left: machines it held are powered off and unlocked.

        Call it once, after :meth:`open`; until then such machines are not free. Those that run
        though no process of ours held them are left alone.
        """
        await self._backends.recover()

    async def close(self) -> None:
        """Power off what is leased, close the backends. In bounded time; raises nothing."""
        self._upkeep.closed = True
        tasks = list(self._upkeep.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        leases = [slot.lease for slot in self._slots.values() if slot.lease is not None]
        await asyncio.gather(*(self.release(lease) for lease in leases))
        await asyncio.gather(*(hypervisor.close() for hypervisor in self._hypervisors))

    # -- machines and leases --------------------------------------------------------------------

    def free(self) -> list[Machine]:
        """The machines that a task may be given to now, in the order of the configuration."""
        if not self._has_room():
            return []
        return [self._row(slot) for slot in self._slots.values() if slot.free]

    def result_addresses(self) -> list[tuple[str, int]]:
        """Where guests look for the result server over a real network, of the open backends.

        Guests that have a unix socket of their own for it are not among them.
        """
        addresses: dict[tuple[str, int], None] = {}
        for slot in self._slots.values():
            if not slot.hypervisor.is_open:
                continue
            try:
                guest = slot.hypervisor.address(slot.config)
            except MachineryError:
                continue  # its first lease says why, and puts it in quarantine
            if "results" not in guest.sockets:
                addresses[guest.resultserver_ip, guest.resultserver_port] = None
        return list(addresses)

    async def wait_changed(self) -> None:
        """Return once a machine may have become free, or its state has changed, since last time.

        For one waiter: what happened before the call, and after the last return, counts.
        """
        await self._upkeep.changed.wait()
        self._upkeep.changed.clear()

    async def machines(self) -> list[Machine]:
        """Every machine as the store has it, with its state now (at most a second old)."""
        await asyncio.gather(
            *(self._upkeep.refresh(slot) for slot in self._slots.values() if not slot.watched)
        )
        rows = await self._store.machines.list()
        return [
            self._row(self._slots[row.name], row) if row.name in self._slots else row
            for row in rows
        ]

    async def lease(self, machine: Machine, shut: Collection[str] = frozenset()) -> Lease | None:
        """Give the machine to the task in the queue that fits it best; None where none fits.

        Tasks whose route is in ``shut`` are passed by.

        None too when the machine is not free any more or ``[cuckoo] max_machines_count`` is
        reached. Cancelled, it leaves the task in the queue and the machine free.
        """
        slot = self._slots.get(machine.name)
        if slot is None or not slot.free or not self._has_room():
            return None
        slot.taken = True
        claim = asyncio.ensure_future(self._claim(slot, shut))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            await to_the_end(self._give_back(slot, claim))
            raise

    async def release(self, lease: Lease) -> None:
        """End the lease: the machine is off and free, or in quarantine, when it returns.

        Finishes even when it is cancelled, then is cancelled. A second release does nothing.
        """
        await to_the_end(self._release(lease))

    async def quarantine(self, name: str, reason: str) -> None:
        """Give no task to this machine until a power-off worked; first tried in half a minute.

        Each further quarantine without a good run in between lasts twice as long, up to ten
        minutes. A leased machine stays its task's; the time counts from the release.
        """
        slot = self._slots[name]
        slot.suspect = True
        await to_the_end(self._upkeep.quarantine(slot, reason))

    # -- leases, inside -------------------------------------------------------------------------

    def _has_room(self) -> bool:
        limit = self._settings.cuckoo.max_machines_count
        return not limit or sum(slot.taken for slot in self._slots.values()) < limit

    async def _claim(self, slot: Slot, shut: Collection[str]) -> Lease | None:
        try:
            if not await self._is_reachable(slot):
                return None
            # before the claim: a task must not be taken out of the queue for an address that fails
            address = slot.hypervisor.address(slot.config)
            task = await self._store.tasks.claim(self._row(slot), shut)
            if task is None:
                return None
            slot.suspect = True
            row = msgspec.structs.replace(self._row(slot), locked=True, task_id=task.id)
            slot.lease = Lease(row, task, address, slot, self._starts)
        except MachineryError as exc:
            await self._upkeep.quarantine(slot, str(exc))
            return None
        finally:
            slot.taken = slot.lease is not None
            self._upkeep.mend_later(slot)
        log.info("machine.leased", machine=row.name, task_id=task.id)
        return slot.lease

    async def _is_reachable(self, slot: Slot) -> bool:
        """Ask where no event would have told: a task must not be spent on a dead hypervisor."""
        if not slot.watched:
            await self._upkeep.refresh(slot)
            if slot.state is MachineState.UNREACHABLE:
                await self._upkeep.quarantine(slot, f"{slot.hypervisor.name} does not answer")
                return False
        return True

    async def _give_back(self, slot: Slot, claim: asyncio.Task[Lease | None]) -> None:
        lease = await claim
        if lease is None:
            return
        moved = self._store.tasks.transition(lease.task.id, Status.RUNNING, Status.PENDING)
        await self._upkeep.persist(moved)
        await self._release(lease)

    async def _release(self, lease: Lease) -> None:
        slot = self._slots[lease.machine.name]
        if slot.lease is not lease:
            return
        try:
            await slot.hypervisor.ensure_off(slot.label)
        except MachineryError as exc:
            await self._upkeep.quarantine(slot, f"it could not be switched off: {exc}")
        else:
            slot.suspect = False
            if not slot.watched:
                await self._upkeep.heard(slot, StateChange(slot.label, MachineState.POWEROFF))
        if slot.zombie and not slot.watched:
            await self._upkeep.quarantine(
                slot, "its start was given up and may still be carried out"
            )
        if not await self._upkeep.persist(self._store.machines.unlock(lease.machine.name)):
            await self._upkeep.quarantine(slot, "the database could not be told that it is free")
        if slot.quarantine is None:
            slot.failures = 0
        slot.lease = None
        slot.taken = False
        log.info("machine.released", machine=lease.machine.name, quarantine=slot.quarantine)
        self._exchange.news.set()
        self._upkeep.mend_later(slot)
        self._upkeep.changed.set()

    # -- backends -------------------------------------------------------------------------------

    async def _bring_in(
        self, configs: Sequence[BackendConfig], left: Left, *, held: bool = False
    ) -> None:
        """Make backends, and a slot for each of their machines; returns once each was tried."""
        made = [self._hypervisor(config) for config in configs]
        pairs = {m.name: (m, hv) for hv in made for m in hv.config.machines}
        new = [machine_row(config, hypervisor.name) for config, hypervisor in pairs.values()]
        for row in await self._store.machines.sync(new, others=self._slots.keys()):
            if row.name not in pairs:
                continue
            slot = self._slots[row.name] = Slot(row, *pairs[row.name])
            slot.stale, slot.held = row.name in left, held
            if (reason := left.get(row.name)) is not None:
                # kept until it was taken back, should this process die as well
                await self._store.machines.set_quarantine(row.name, reason)
        self._hypervisors += made
        tried = [asyncio.Event() for _ in made]
        for hypervisor, event in zip(made, tried, strict=True):
            self._serving[hypervisor] = self._upkeep.spawn(self._backends.serve(hypervisor, event))
        for event in tried:
            await event.wait()

    async def _bring_in_later(self, configs: Sequence[BackendConfig], left: Left) -> None:
        await self._bring_in(configs, left, held=True)
        for slot in self._slots.values():
            slot.held = False
        self._upkeep.changed.set()

    def _hypervisor(self, config: BackendConfig) -> Hypervisor:
        return Hypervisor(
            self._plugins[config.name],
            config,
            self._deadlines,
            max_starts=self._settings.machinery[config.name].max_vmstartup_count,
        )

    async def _shut(self, hypervisor: Hypervisor) -> Left:
        """Close a backend, none of whose machines is taken, and forget it and them.

        What may run because of us, and will be another one's, is told; the rest is switched off.
        """
        slots = slots_of(self._slots, hypervisor)
        tasks = [self._serving.pop(hypervisor), *(s.mending for s in slots if s.mending)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        wanted = self._exchange.wanted.get(hypervisor.name)
        stay = {(m.name, m.label) for m in wanted.machines} if wanted is not None else set()
        left: Left = {}
        for slot in slots:
            if slot.suspect or slot.stale or slot.zombie:
                if (slot.machine.name, slot.label) in stay:
                    left[slot.machine.name] = slot.quarantine
                else:
                    await self._switch_off(slot)
        await hypervisor.close()
        self._hypervisors.remove(hypervisor)
        for slot in slots:
            del self._slots[slot.machine.name]
        return left

    @staticmethod
    async def _switch_off(slot: Slot) -> None:
        try:
            await slot.hypervisor.ensure_off(slot.label, even_if_off=slot.zombie)
        except MachineryError as exc:
            log.warning("machine.left_behind", machine=slot.machine.name, reason=str(exc))

    @staticmethod
    def _row(slot: Slot, row: Machine | None = None) -> Machine:
        return msgspec.structs.replace(
            row or slot.machine, status=slot.state, quarantine=slot.quarantine
        )


async def _nothing() -> None:
    pass
