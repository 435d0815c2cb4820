"""Waiting tasks x free machines. Wakes on events, never polls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from cuckoo_api.analysis.run import InfrastructureFault, Workshop, run_analysis
from cuckoo_api.analysis.system import free_bytes
from cuckoo_api.fleet import Fleet, Lease
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.task import Status, Task
from cuckoo_api.reporting import ProcessingFailed, make_report

log = structlog.get_logger()

DISK_RECHECK = 10.0
"""Seconds until a disk that was too full is looked at again: freeing space makes no event."""
PARALLEL_REPORTS = 2


class Scheduler:
    """Gives each free machine the best task that fits it, and sees each analysis to its end."""

    def __init__(
        self,
        workshop: Workshop,
        fleet: Fleet,
        *,
        analyse: Callable[[Workshop, Lease], Awaitable[list[str]]] = run_analysis,
    ) -> None:
        self._workshop = workshop
        self._fleet = fleet
        self._analyse = analyse
        self._store = workshop.store
        self._settings = workshop.settings
        self._wanted = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._reports = asyncio.Semaphore(PARALLEL_REPORTS)

    def wake(self) -> None:
        """A task was added, or a machine may have become free."""
        self._wanted.set()

    async def open(self, unreported: list[Task]) -> None:
        """Start giving out work; ``unreported`` are analyses of an earlier process to report."""
        for task in unreported:
            self._spawn(self._report(task))
        self._loops = [
            asyncio.create_task(self._give_out(), name="scheduler"),
            asyncio.create_task(self._follow_fleet(), name="scheduler-fleet"),
        ]
        self.wake()

    async def close(self) -> None:
        """Stop. A running analysis is broken off and its task goes back to the queue."""
        tasks = [*self._loops, *self._running]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._loops.clear()

    # -- giving out ----------------------------------------------------------------------------

    async def _give_out(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._give_each_machine_a_task()
            except CuckooError:
                log.exception("scheduler.failed")

    async def _give_each_machine_a_task(self) -> None:
        for machine in self._fleet.free():
            if not self._disk_has_room():
                asyncio.get_running_loop().call_later(DISK_RECHECK, self.wake)
                return
            lease = await self._fleet.lease(machine)
            if lease is not None:
                self._spawn(self._see_through(lease))

    async def _follow_fleet(self) -> None:
        while True:
            await self._fleet.wait_changed()
            self.wake()

    def _disk_has_room(self) -> bool:
        free = free_bytes(self._settings.storage)
        if free >= self._settings.cuckoo.freespace:
            return True
        log.warning(
            "scheduler.disk_full",
            free=free,
            wanted=self._settings.cuckoo.freespace,
            hint="no analysis starts until there is room under storage/",
        )
        return False

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    # -- one task ------------------------------------------------------------------------------

    async def _see_through(self, lease: Lease) -> None:
        """From a leased machine to a final state; whatever happens the machine is released."""
        task = lease.task
        with structlog.contextvars.bound_contextvars(task_id=task.id):
            errors: list[str] | None = None
            try:
                errors = await self._analyse(self._workshop, lease)
            except InfrastructureFault as exc:
                await self._fleet.quarantine(lease.machine.name, str(exc))
                await self._try_again(task, str(exc))
            except CuckooError as exc:
                await self._try_again(task, str(exc))
            except asyncio.CancelledError:
                await asyncio.shield(
                    self._store.tasks.transition(task.id, Status.RUNNING, Status.PENDING)
                )
                raise
            except Exception as exc:  # a bug must cost one attempt, not a task
                log.exception("analysis.bug")
                await self._try_again(task, f"Internal error: {type(exc).__name__}")
            finally:
                await self._fleet.release(lease)
            if errors is None:
                self.wake()
                return
            for error in errors:
                await self._store.tasks.add_error(task.id, error)
            if await self._store.tasks.transition(task.id, Status.RUNNING, Status.COMPLETED):
                await self._report(task)

    async def _try_again(self, task: Task, reason: str) -> None:
        status = await self._store.tasks.requeue(
            task.id, reason, max_attempts=self._settings.cuckoo.max_attempts
        )
        log.warning("analysis.failed", reason=reason, status=status.value)

    async def _report(self, task: Task) -> None:
        """Make the report of a completed task; a failed one is the task's last state."""
        async with self._reports:
            current = await self._store.tasks.get(task.id)
            if current is None:
                return
            machine = await self._store.machines.get(current.machine) if current.machine else None
            folder = self._workshop.artefacts.analysis(task.id)
            try:
                errors = await make_report(folder.path, current, machine, self._settings.processing)
            except ProcessingFailed as exc:
                await self._store.tasks.transition(
                    task.id, Status.COMPLETED, Status.FAILED_PROCESSING, error=str(exc)
                )
                log.exception("report.failed")
                return
            for error in errors:
                await self._store.tasks.add_error(task.id, error)
            await self._store.tasks.transition(task.id, Status.COMPLETED, Status.REPORTED)
            log.info("report.made", task_id=task.id)
