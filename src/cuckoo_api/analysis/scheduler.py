"""Waiting tasks x free machines. Wakes on events, never polls.

What is to be done stands in the store, and only there: tasks that wait, cancelled ones that still
run, completed ones without a report. Whoever changed it, in this process or another, only has to
wake the scheduler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from cuckoo_api.analysis.disk import DiskRoom
from cuckoo_api.analysis.fuzzyhash import with_fuzzy_hash
from cuckoo_api.analysis.run import InfrastructureFault, Workshop, run_analysis
from cuckoo_api.analysis.tasklog import task_log
from cuckoo_api.fleet import Fleet, Lease
from cuckoo_api.fleet.deadlines import to_the_end
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import Sample
from cuckoo_api.model.task import Status, Task
from cuckoo_api.network.routing import RouteDown
from cuckoo_api.reporting.service import ProcessingFailed, ReportingFailed, make_report

log = structlog.get_logger()

RECHECK = 10.0
"""Seconds until it looks again after a full disk or a failed look: their mending makes no event."""
PARALLEL_REPORTS = 2
MOST = 64
"""Machines that are leased at once: as many claims share a commit."""
REPORTABLE = frozenset({Status.COMPLETED, Status.CANCELLED})


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
        self.disk = DiskRoom(
            self._settings.storage, self._settings.cuckoo.freespace, on_change=self.wake
        )
        self._told_low = False
        self.on_let_go: Callable[[], None] = lambda: None
        """Called when :meth:`has_in_hand` has become false for some task."""
        self._draining = False
        self._looking = asyncio.Lock()
        self._running: dict[asyncio.Task[None], int] = {}
        self._analyses: dict[int, asyncio.Task[list[str]]] = {}
        self._reporting: set[int] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._reports = asyncio.Semaphore(PARALLEL_REPORTS)
        self._recheck: asyncio.TimerHandle | None = None

    def reconfigure(self, workshop: Workshop) -> None:
        """Begin the next analyses and reports with this; what is under way is not disturbed."""
        self._workshop = workshop
        self._settings = workshop.settings
        self.disk.wanted = self._settings.cuckoo.freespace
        self.wake()

    def wake(self) -> None:
        """A task was added, cancelled or is to be reported, or a machine may have become free."""
        self._wanted.set()

    def has_in_hand(self, task_id: int) -> bool:
        """Whether its machine runs or its report is made: what it leaves is not whole yet."""
        return task_id in self._running.values()

    def open(self) -> None:
        """Start giving out work."""
        self._loops = [
            asyncio.create_task(self._give_out(), name="scheduler"),
            asyncio.create_task(self._follow_fleet(), name="scheduler-fleet"),
        ]
        self.wake()

    async def drain(self) -> None:
        """Begin nothing any more; return once what runs has come to its report.

        What is cancelled meanwhile is stopped all the same.
        """
        self._draining = True
        async with self._looking:
            pass  # what was being given out runs by now
        while self._running:
            await asyncio.wait(set(self._running))

    async def close(self) -> None:
        """Stop. A running analysis is broken off and its task goes back to the queue."""
        if self._recheck is not None:
            self._recheck.cancel()
        await _cancelled(self._loops)
        await asyncio.sleep(0)  # what has not begun could not give its lease back
        await _cancelled(list(self._running))
        self._loops.clear()

    # -- giving out ----------------------------------------------------------------------------

    async def _give_out(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                async with self._looking:
                    await self._look()
            except Exception:  # whatever it is, it must not be the last look
                log.exception("scheduler.failed")
                self._look_again_later()

    async def _look(self) -> None:
        await self._stop_cancelled()
        if self._draining:
            return
        await self._report_completed()
        await self._give_each_machine_a_task()
        await self._tell_of_disk()

    async def _give_each_machine_a_task(self) -> None:
        """Lease the free machines that a waiting task fits, few at first and then more at once.

        What waits is asked before each batch: of hundreds of free machines none tries in vain for
        the one task that was submitted, and many tasks are leased in few commits.
        """
        free, size = self._fleet.free(), 1
        while free:
            shut = self._workshop.router.shut()
            demands = [d for d in await self._store.tasks.demands() if d.route not in shut]
            free = [machine for machine in free if any(d.fits(machine) for d in demands)]
            if free and not self.disk.look():
                self._look_again_later()
                return
            async with asyncio.TaskGroup() as group:
                for machine in free[:size]:
                    group.create_task(self._give_a_task(machine, shut))
            free, size = free[size:], min(2 * size, MOST)

    async def _give_a_task(self, machine: Machine, shut: frozenset[str]) -> None:
        lease = await self._fleet.lease(machine, shut)
        if lease is not None:
            self._spawn(lease.task.id, self._see_through(lease))

    async def _stop_cancelled(self) -> None:
        if not self._analyses:
            return
        for task_id in await self._store.tasks.to_stop():
            if (analysis := self._analyses.get(task_id)) is not None:
                analysis.cancel()

    async def _report_completed(self) -> None:
        for task_id in await self._store.tasks.completed():
            if task_id not in self._reporting:
                self._spawn(task_id, self._report_again(task_id))

    async def _follow_fleet(self) -> None:
        while True:
            await self._fleet.wait_changed()
            self.wake()

    async def _tell_of_disk(self) -> None:
        """An event for each end of a pause; where it cannot be written, the next look tries."""
        if self.disk.low == self._told_low:
            return
        try:
            await self._store.events.add("disk", self.disk.event())
        except CuckooError as exc:  # the disk is full, most likely
            log.warning("scheduler.not_told", reason=exc.log)
        else:
            self._told_low = self.disk.low

    def _look_again_later(self) -> None:
        if self._recheck is None:
            self._recheck = asyncio.get_running_loop().call_later(RECHECK, self._look_again)

    def _look_again(self) -> None:
        self._recheck = None
        self.wake()

    def _spawn(self, task_id: int, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._running[task] = task_id
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self.on_let_go()
        if not task.cancelled() and (fault := task.exception()) is not None:
            # its machine is free; its state stands in the store, for the next wake or start
            log.error("scheduler.task_failed", exc_info=fault)

    # -- one task ------------------------------------------------------------------------------

    async def _see_through(self, lease: Lease) -> None:
        """From a leased machine to a final state; whatever happens the machine is released."""
        task = lease.task
        with structlog.contextvars.bound_contextvars(task_id=task.id), task_log():
            log.info("analysis.begins", machine=lease.machine.name)
            errors: list[str] | None = None
            try:
                errors = await self._run(lease)
            # what is known of its end is kept, also when the server stops at this moment
            except InfrastructureFault as exc:
                await to_the_end(self._blame(lease, str(exc)))
            except RouteDown as exc:
                await to_the_end(self._without_route(task, str(exc)))
            except CuckooError as exc:
                await to_the_end(self._try_again(task, str(exc)))
            except asyncio.CancelledError:
                await to_the_end(self._put_back(task))
                raise
            except Exception as exc:  # a bug must cost one attempt, not a task
                log.exception("analysis.bug")
                await to_the_end(self._try_again(task, f"Internal error: {type(exc).__name__}"))
            finally:
                await to_the_end(self._let_go(lease, errors))
            if errors is None:
                self.wake()
            else:
                await self._report(task.id)

    async def _run(self, lease: Lease) -> list[str]:
        """The analysis, which :meth:`_stop_cancelled` may break off; its errors."""
        task_id = lease.task.id
        work = asyncio.ensure_future(self._analyse(self._workshop, lease))
        self._analyses[task_id] = work
        try:
            return await work
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # the server stops
            return ["The analysis was cancelled"]
        finally:
            del self._analyses[task_id]

    async def _let_go(self, lease: Lease, errors: list[str] | None) -> None:
        """Release the machine; where the analysis came to its end, its task waits for a report."""
        await self._fleet.release(lease)
        if errors is None:
            return
        for error in errors:
            await self._store.tasks.add_error(lease.task.id, error)
        # one that was cancelled meanwhile stays so, and is reported all the same
        await self._store.tasks.transition(lease.task.id, Status.RUNNING, Status.COMPLETED)

    async def _without_route(self, task: Task, reason: str) -> None:
        """Neither the machine's fault nor the sample's: another try would be no better now.

        A route that went down after the task had been claimed is waited for as any other is.
        """
        log.warning("analysis.no_route", reason=reason)
        if task.options.get("route", "") in self._workshop.router.shut():
            await self._put_back(task)
            return
        await self._store.tasks.transition(
            task.id, Status.RUNNING, Status.FAILED_ANALYSIS, error=reason
        )

    async def _put_back(self, task: Task) -> None:
        await self._store.tasks.transition(task.id, Status.RUNNING, Status.PENDING)

    async def _blame(self, lease: Lease, reason: str) -> None:
        await self._fleet.quarantine(lease.machine.name, reason)
        await self._try_again(lease.task, reason)

    async def _try_again(self, task: Task, reason: str) -> None:
        status = await self._store.tasks.requeue(
            task.id, reason, max_attempts=self._settings.cuckoo.max_attempts
        )
        log.warning("analysis.failed", reason=reason, status=status.value)

    async def _report_again(self, task_id: int) -> None:
        """The report of a task that came to its end earlier."""
        with structlog.contextvars.bound_contextvars(task_id=task_id), task_log() as kept:
            kept.open(self._workshop.artefacts.analysis(task_id).path)
            await self._report(task_id)

    async def _report(self, task_id: int) -> None:
        """Make the report of a task that is done; a failed one is the task's last state."""
        if task_id in self._reporting:
            return
        self._reporting.add(task_id)
        try:
            async with self._reports:
                await self._make_report(task_id)
        finally:
            self._reporting.discard(task_id)

    async def _make_report(self, task_id: int) -> None:
        tasks = self._store.tasks
        task = await tasks.get(task_id)
        if task is None or task.status not in REPORTABLE:
            return
        if isinstance(task.sample, Sample):  # what was analysed is complete in lists as well
            await with_fuzzy_hash(self._store, self._workshop.artefacts, task.sample)
        machine = await self._store.machines.get(task.machine) if task.machine else None
        folder = self._workshop.artefacts.analysis(task_id)
        if folder.is_trimmed:  # another report was asked for at the moment when its files went
            await tasks.transition(task_id, Status.COMPLETED, Status.REPORTED)
            return
        lap = self._workshop.meter.laps()
        try:
            errors = await make_report(
                folder.path,
                task,
                machine,
                self._settings.processing,
                self._settings.cwd,
                html=self._settings.reporting.html,
            )
        except (ProcessingFailed, ReportingFailed) as exc:
            if await tasks.get(task_id) is None:  # cancelled, and then deleted with all its files
                log.info("report.dropped")
                return
            log.exception("report.failed")
            failed = (
                Status.FAILED_REPORTING
                if isinstance(exc, ReportingFailed)
                else Status.FAILED_PROCESSING
            )
            await tasks.transition(task_id, Status.COMPLETED, failed, error=str(exc))
            return
        lap("report")
        for error in errors:
            if error not in task.errors:  # said by an earlier report
                await tasks.add_error(task_id, error)
        await tasks.transition(task_id, Status.COMPLETED, Status.REPORTED)
        log.info("report.made")


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
