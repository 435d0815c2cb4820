"""The backends while they are open: reached, their machines taken in, their news listened to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping

import structlog

from cuckoo_api.fleet.deadlines import backoff
from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.fleet.slots import Slot, slots_of
from cuckoo_api.fleet.upkeep import MAX_REASON, Upkeep, fault_text
from cuckoo_api.machinery import BadConfig, Capability, MachineryError, MachineState, StateChange
from cuckoo_api.store import Store

log = structlog.get_logger()


class Backends:
    """Keeps each backend open, in a task of its own, and its slots up to date."""

    def __init__(
        self,
        store: Store,
        upkeep: Upkeep,
        slots: Mapping[str, Slot],
        *,
        on_opened: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._upkeep = upkeep
        self._slots = slots
        self._on_opened = on_opened
        self._recovering = False

    async def recover(self) -> None:
        """Take back what an earlier process left; from now on each backend that opens does so."""
        self._recovering = True
        stale = [slot for slot in self._slots.values() if slot.stale]
        await asyncio.gather(*(self._take_back(slot) for slot in stale))

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

    async def serve(self, hypervisor: Hypervisor, tried: asyncio.Event) -> None:
        """Keep one backend open and listen to it, as long as the fleet is open."""
        try:
            known = await self._reach(hypervisor, tried)
            if known is None:
                return
            await self._on_opened()
            slots = slots_of(self._slots, hypervisor)
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
            first, last = self._upkeep.deadlines.first_reopen, self._upkeep.deadlines.last_reopen
            await asyncio.sleep(backoff(first, last, failures))
        return None

    async def _bar(self, hypervisor: Hypervisor, reason: str) -> None:
        """Quarantine all its machines; they come back by themselves when it opens."""
        log.error("machinery.unavailable", machinery=hypervisor.name, reason=reason)
        text = f"{hypervisor.name} cannot be used: {reason}"[:MAX_REASON]
        for slot in slots_of(self._slots, hypervisor):
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
        first, last = self._upkeep.deadlines.first_reopen, self._upkeep.deadlines.last_reopen
        failures = 0
        slots = {slot.label: slot for slot in slots_of(self._slots, hypervisor)}
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
