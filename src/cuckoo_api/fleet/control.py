"""All machines of all backends: who may use which, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

import msgspec
import structlog

from cuckoo_api.fleet.deadlines import Deadlines, backoff, to_the_end
from cuckoo_api.fleet.hypervisor import NO_LIMIT, Hypervisor
from cuckoo_api.fleet.leases import Lease
from cuckoo_api.fleet.setup import backend_configs, machine_row
from cuckoo_api.fleet.slots import Slot
from cuckoo_api.fleet.upkeep import MAX_REASON, Upkeep, fault_text
from cuckoo_api.machinery import (
    BadConfig,
    Capability,
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
    ) -> None:
        self._settings = settings
        self._plugins = plugins
        self._store = store
        self._deadlines = deadlines or Deadlines.of(settings.timeouts)
        self._hypervisors: list[Hypervisor] = []
        self._slots: dict[str, Slot] = {}
        self._starts = asyncio.Semaphore(settings.cuckoo.max_vmstartup_count or NO_LIMIT)
        self._upkeep = Upkeep(store, self._deadlines, self._slots)
        self._recovering = False

    # -- start and end --------------------------------------------------------------------------

    async def open(self) -> None:
        """Open every active backend and look at every configured machine.

        Raises ConfigError for what no retry can mend: a plugin that is not there, names given
        twice. A backend that cannot be opened puts its machines in quarantine with the reason
        and is tried again in the background; the others work.
        """
        self._hypervisors = [
            Hypervisor(
                self._plugins[config.name],
                config,
                self._deadlines,
                max_starts=self._settings.machinery[config.name].max_vmstartup_count,
            )
            for config in backend_configs(self._settings, self._plugins)
        ]
        pairs = {m.name: (m, hv) for hv in self._hypervisors for m in hv.config.machines}
        # before the sync, which forgets quarantines: such a machine may run because of us
        before = {row.name: row for row in await self._store.machines.list()}
        rows = await self._store.machines.sync(
            [machine_row(config, hypervisor.name) for config, hypervisor in pairs.values()]
        )
        for row in rows:
            slot = self._slots[row.name] = Slot(row, *pairs[row.name])
            old = before.get(row.name, row)
            slot.stale = old.locked or old.quarantine is not None
            if old.quarantine is not None:  # kept until recover(), should this process die as well
                await self._store.machines.set_quarantine(row.name, old.quarantine)
        tried = [asyncio.Event() for _ in self._hypervisors]
        try:
            for hypervisor, event in zip(self._hypervisors, tried, strict=True):
                self._upkeep.spawn(self._serve(hypervisor, event))
            for event in tried:
                await event.wait()
        except BaseException:
            await self.close()
            raise

    async def recover(self) -> None:
        """Take back what an earlier process left: machines it held are powered off and unlocked.

        Call it once, after :meth:`open`; until then such machines are not free. Those that run
        though no process of ours held them are left alone.
        """
        self._recovering = True
        stale = [slot for slot in self._slots.values() if slot.stale]
        await asyncio.gather(*(self._take_back(slot) for slot in stale))

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

    async def lease(self, machine: Machine) -> Lease | None:
        """Give the machine to the task in the queue that fits it best; None where none fits.

        None too when the machine is not free any more or ``[cuckoo] max_machines_count`` is
        reached. Cancelled, it leaves the task in the queue and the machine free.
        """
        slot = self._slots[machine.name]
        if not slot.free or not self._has_room():
            return None
        slot.taken = True
        claim = asyncio.ensure_future(self._claim(slot))
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

    async def _claim(self, slot: Slot) -> Lease | None:
        try:
            if not await self._is_reachable(slot):
                return None
            # before the claim: a task must not be taken out of the queue for an address that fails
            address = slot.hypervisor.address(slot.config)
            task = await self._store.tasks.claim(self._row(slot))
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
        self._upkeep.mend_later(slot)
        self._upkeep.changed.set()

    async def _take_back(self, slot: Slot) -> None:
        if slot.hypervisor.is_open:
            trouble = await self._upkeep.mend(slot)
            if trouble is None:
                return
            if not slot.faults:
                slot.suspect, slot.stale = True, False
                trouble = f"left behind by an earlier process: {trouble}"
            await self._upkeep.quarantine(slot, trouble)
            self._upkeep.mend_later(slot)
        # else it stays stale, and is taken back when the backend opens
        await self._upkeep.persist(self._store.machines.unlock(slot.machine.name))

    # -- backends -------------------------------------------------------------------------------

    async def _serve(self, hypervisor: Hypervisor, tried: asyncio.Event) -> None:
        """Keep one backend open and listen to it, as long as the fleet is open."""
        try:
            known = await self._reach(hypervisor, tried)
            if known is None:
                return
            slots = self._slots_of(hypervisor)
            await asyncio.gather(*(self._upkeep.look(slot, known) for slot in slots))
            for slot in slots:  # in order: of two that are one machine, the first is used
                self._upkeep.judge(slot)
            await asyncio.gather(*(self._admit(slot) for slot in slots))
        finally:
            tried.set()
        if Capability.WATCH in hypervisor.capabilities:
            await self._listen(hypervisor)

    async def _reach(self, hypervisor: Hypervisor, tried: asyncio.Event) -> list[str] | None:
        """Open the backend, however long it takes; its labels. None when it never can be."""
        for failures in itertools.count(1):
            try:
                await hypervisor.open()
                return await hypervisor.labels()
            except MachineryError as exc:
                await hypervisor.close()
                await self._bar(hypervisor, str(exc))
                if isinstance(exc, BadConfig):
                    return None
            tried.set()
            first, last = self._deadlines.first_reopen, self._deadlines.last_reopen
            await asyncio.sleep(backoff(first, last, failures))
        return None

    async def _bar(self, hypervisor: Hypervisor, reason: str) -> None:
        """Quarantine all its machines; they come back by themselves when it opens."""
        log.error("machinery.unavailable", machinery=hypervisor.name, reason=reason)
        text = f"{hypervisor.name} cannot be used: {reason}"[:MAX_REASON]
        for slot in self._slots_of(hypervisor):
            await self._upkeep.heard(
                slot, StateChange(slot.label, MachineState.UNREACHABLE, reason)
            )
            if slot.quarantine != text:
                await self._upkeep.set_quarantine(slot, text)

    async def _admit(self, slot: Slot) -> None:
        """Take in one machine of a backend that has just been opened, or bar it with its faults."""
        was_barred, slot.quarantine = slot.quarantine is not None, None
        slot.state, slot.asked_at = None, float("-inf")
        if slot.seen is None:
            await self._upkeep.quarantine(slot, fault_text(slot))
            return
        if slot.stale:
            if self._recovering:
                await self._take_back(slot)
        elif slot.faults:
            await self._upkeep.quarantine(slot, fault_text(slot))
        elif was_barred:
            await self._upkeep.set_quarantine(slot, None)
        await self._upkeep.refresh(slot)  # also where events will tell: the first may take a while

    async def _listen(self, hypervisor: Hypervisor) -> None:
        loop = asyncio.get_running_loop()
        first, last = self._deadlines.first_reopen, self._deadlines.last_reopen
        failures = 0
        slots = {slot.label: slot for slot in self._slots_of(hypervisor)}
        while True:
            began, reason = loop.time(), "its stream of events ended"
            try:
                async with hypervisor.events() as events:
                    async for change in events:
                        if (slot := slots.get(change.label)) is not None:
                            self._upkeep.heard_event(slot, change)
            except MachineryError as exc:
                reason = str(exc)
            # a stream that breaks as soon as it has begun must not be begun again every second
            failures = 1 if loop.time() - began > last else failures + 1
            log.warning("machinery.lost", machinery=hypervisor.name, reason=reason)
            for slot in slots.values():
                change = StateChange(slot.label, MachineState.UNREACHABLE, reason)
                self._upkeep.heard_event(slot, change)
            await asyncio.sleep(backoff(first, last, failures))

    # -- small things ---------------------------------------------------------------------------

    def _slots_of(self, hypervisor: Hypervisor) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.hypervisor is hypervisor]

    @staticmethod
    def _row(slot: Slot, row: Machine | None = None) -> Machine:
        return msgspec.structs.replace(
            row or slot.machine, status=slot.state, quarantine=slot.quarantine
        )
