"""What is known of each machine, and the mending of those that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from contextvars import Context
from typing import Any

import structlog

from cuckoo_api.fleet.checks import faults, look
from cuckoo_api.fleet.deadlines import Deadlines, backoff
from cuckoo_api.fleet.slots import Slot
from cuckoo_api.machinery import MachineNotFound, MachineryError, MachineState, StateChange
from cuckoo_api.store import Store

log = structlog.get_logger()

MAX_REASON = 1000
"""Characters of a quarantine's reason that are kept."""


class Upkeep:
    """States and quarantines: kept in the slots, written to the store, mended in the background."""

    def __init__(self, store: Store, deadlines: Deadlines, slots: Mapping[str, Slot]) -> None:
        self.changed = asyncio.Event()
        """Set whenever a machine may have become free, or its state has changed."""
        self.tasks: set[asyncio.Task[None]] = set()
        """What runs in the background, until the fleet closes."""
        self.closed = False
        self._store = store
        self.deadlines = deadlines
        self._slots = slots

    # -- quarantine -----------------------------------------------------------------------------

    async def quarantine(self, slot: Slot, reason: str) -> None:
        if slot.quarantine is not None:
            return
        slot.failures += 1
        await self.set_quarantine(slot, reason[:MAX_REASON])
        log.warning("machine.quarantined", machine=slot.machine.name, reason=slot.quarantine)
        self.mend_later(slot)

    async def set_quarantine(self, slot: Slot, reason: str | None) -> None:
        slot.quarantine = reason
        await self.persist(self._store.machines.set_quarantine(slot.machine.name, reason))
        self.changed.set()

    def mend_later(self, slot: Slot) -> None:
        busy = slot.mending is not None and not slot.mending.done()
        if slot.quarantine is not None and not slot.taken and not busy and not self.closed:
            slot.retry_now.clear()
            slot.mending = self.spawn(self._keep_mending(slot))

    async def _keep_mending(self, slot: Slot) -> None:
        first, last = self.deadlines.first_retry, self.deadlines.last_retry
        while True:
            # a fault is mended by a person, who is not to wait longer each time
            pause = first if slot.faults else backoff(first, last, slot.failures)
            try:
                async with asyncio.timeout(pause):
                    await slot.retry_now.wait()
            except TimeoutError:
                pass
            slot.retry_now.clear()
            trouble = await self.mend(slot)
            if trouble is None:
                return
            log.info("machine.still_quarantined", machine=slot.machine.name, reason=trouble)
            if not slot.faults:
                slot.failures += 1
            elif slot.quarantine != trouble:
                await self.set_quarantine(slot, trouble)

    async def mend(self, slot: Slot) -> str | None:
        """Make a machine usable again: known, off where it may run because of us, unlocked, whole.

        None, or why it is not.
        """
        hypervisor = slot.hypervisor
        try:
            await self.look(slot, await hypervisor.labels())
            if slot.seen is None:
                return fault_text(slot)
            if slot.suspect or slot.stale or slot.zombie:
                await hypervisor.ensure_off(slot.label, even_if_off=slot.zombie)
            else:
                await hypervisor.state(slot.label)
        except MachineryError as exc:
            return str(exc)
        if not await self.persist(self._store.machines.unlock(slot.machine.name)):
            return "the database could not be told that it is free"
        slot.suspect = slot.stale = slot.zombie = False
        self.judge(slot)
        if slot.faults:
            return fault_text(slot)
        if not slot.watched:
            slot.asked_at = float("-inf")
            await self.refresh(slot)
        await self.set_quarantine(slot, None)
        log.info("machine.usable", machine=slot.machine.name)
        return None

    # -- faults ---------------------------------------------------------------------------------

    async def look(self, slot: Slot, known: Collection[str]) -> None:
        """See what the hypervisor, which has the labels ``known``, tells of the machine."""
        slot.seen, slot.faults = None, None
        try:
            slot.seen = await look(slot.hypervisor, slot.config, known)
        except MachineNotFound as exc:
            slot.faults = (str(exc),)

    def judge(self, slot: Slot) -> None:
        """Say what is wrong with a machine that was looked at, beside those that may be used."""
        if slot.seen is not None:
            others = (s for s in self._slots.values() if s is not slot and s.faults == ())
            slot.faults = faults(slot.seen, (s.seen for s in others if s.seen is not None))

    # -- states ---------------------------------------------------------------------------------

    async def heard(self, slot: Slot, change: StateChange) -> None:
        """Take note of a state, whoever caused it, and write it down."""
        if self.note(slot, change):
            await self._write_down(slot, change.state)

    def heard_event(self, slot: Slot, change: StateChange) -> None:
        """The same, written in the background: the next event must not wait for a disk."""
        if self.note(slot, change):
            self.changed.set()  # at once, for the state may not last until it is written
            self.spawn(self._write_down(slot, change.state))

    def note(self, slot: Slot, change: StateChange) -> bool:
        """Take note of a state; whether it is another one than before."""
        before, slot.state = slot.state, change.state
        slot.asked_at = asyncio.get_running_loop().time()
        if slot.lease is not None:
            slot.lease.notice(change)
        if before is MachineState.UNREACHABLE and before is not change.state:
            slot.retry_now.set()
        return before is not change.state

    async def _write_down(self, slot: Slot, state: MachineState) -> None:
        if slot.state is not None:  # which may have moved on: the last word is what counts
            await self.persist(
                self._store.machines.set_status(slot.label, slot.hypervisor.name, slot.state)
            )
        if state is MachineState.RUNNING and slot.zombie and not slot.taken:
            await self.quarantine(slot, "a start that was given up was carried out after all")
            slot.retry_now.set()
        self.changed.set()

    async def refresh(self, slot: Slot) -> None:
        """Ask the hypervisor, unless it was asked a moment ago."""
        async with slot.asking:
            age = asyncio.get_running_loop().time() - slot.asked_at
            if age <= self.deadlines.fresh or not slot.hypervisor.is_open:
                return
            try:
                change = StateChange(slot.label, await slot.hypervisor.state(slot.label))
            except MachineryError as exc:
                change = StateChange(slot.label, MachineState.UNREACHABLE, str(exc))
            await self.heard(slot, change)

    async def persist(self, write: Coroutine[Any, Any, object]) -> bool:
        """Write what is known anyway: a full disk must not keep a machine from being freed."""
        try:
            await write
        except Exception:  # the store's errors are its driver's, unknown here
            log.exception("fleet.not_written")
            return False
        return True

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # in a context of its own: what is logged is not the task's in whose course it began
        task = asyncio.create_task(work, context=Context())
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("fleet.task_failed", exc_info=error)


def fault_text(slot: Slot) -> str:
    """All that is wrong with the machine, as the reason of a quarantine."""
    return "; ".join(slot.faults or ())[:MAX_REASON]
