"""Who gets which machine and when: on events only, and whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cuckoo_api.analysis import disk
from cuckoo_api.analysis import scheduler as module
from cuckoo_api.analysis.run import InfrastructureFault, Workshop
from cuckoo_api.analysis.scheduler import Scheduler
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.errors import Unavailable
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import NewTask, Status, Task
from cuckoo_api.network.routing import RouteDown, Router
from cuckoo_api.settings import CuckooSection, Settings
from cuckoo_api.store import Store
from waiting import Bell, News

pytestmark = pytest.mark.slow


@dataclass
class Lease:
    machine: Machine
    task: Task


@dataclass
class Machines:
    """What of a fleet the scheduler needs."""

    store: Store
    rows: list[Machine]
    taken: set[str] = field(default_factory=set)
    quarantined: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """The machines that were tried, in order."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def free(self) -> list[Machine]:
        return [m for m in self.rows if m.name not in self.taken | self.quarantined.keys()]

    async def lease(self, machine: Machine, shut: Collection[str]) -> Lease | None:
        self.asked.append(machine.name)
        task = await self.store.tasks.claim(machine, shut)
        if task is None:
            return None
        self.taken.add(machine.name)
        return Lease(machine, task)

    async def release(self, lease: Lease) -> None:
        await self.store.machines.unlock(lease.machine.name)
        self.taken.remove(lease.machine.name)
        self.changed.set()

    async def quarantine(self, name: str, reason: str) -> None:
        self.quarantined[name] = reason

    async def wait_changed(self) -> None:
        await self.changed.wait()
        self.changed.clear()


@dataclass
class Bench:
    """A scheduler whose analyses and reports the test plays itself."""

    store: Store
    machines: Machines
    settings: Settings
    artefacts: Artefacts
    news: News
    """Whatever is written to the store, or done here."""
    log: list[str] = field(default_factory=list)
    """What was done, in order: ``run 3 on one``, ``report 3``."""
    analyse: Callable[[Lease], Any] | None = None
    report: Callable[[int], Any] | None = None
    scheduler: Scheduler | None = None
    bell: Bell = field(default_factory=Bell)
    router: Router = field(default_factory=Router)

    def note(self, line: str) -> None:
        self.log.append(line)
        self.news.one_more()

    def open(self) -> Scheduler:
        async def analyse(_workshop: Workshop, lease: Lease) -> list[str]:
            self.note(f"run {lease.task.id} on {lease.machine.name}")
            return [] if self.analyse is None else await self.analyse(lease)

        workshop = Workshop(
            self.settings,
            self.store,
            self.artefacts,
            None,
            None,
            router=self.router,  # type: ignore[arg-type]
        )
        self.scheduler = Scheduler(workshop, self.machines, analyse=analyse)  # type: ignore[arg-type]
        self.scheduler._wanted = self.bell = Bell()
        self.scheduler.open()
        return self.scheduler

    async def submit(self, **fields: Any) -> int:
        new = NewTask(category="url", target="http://e.example/", **fields)
        return (await self.store.tasks.submit([new]))[0]

    async def status(self, task_id: int) -> str:
        task = await self.store.tasks.get(task_id)
        assert task is not None
        return task.status

    async def until(self, happened: Callable[[], bool]) -> None:
        await self.news.until(happened)

    async def until_status(self, task_id: int, status: Status) -> None:
        async def there() -> bool:
            return await self.status(task_id) == status

        await self.news.until(there)

    async def at_rest(self) -> None:
        """Until the scheduler waits for something to happen."""
        await self.bell.at_rest()


@pytest.fixture
async def bench(
    tmp_path: Path, empty_database: Path, writes: News, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    store = await Store.open(f"sqlite:///{tmp_path / 'cuckoo.db'}")
    rows = await store.machines.sync(
        [
            Machine(
                id=0, name=name, label=name, manager="fake", ip="192.0.2.1", platform="linux",
                resultserver_ip="192.0.2.2", resultserver_port=2042,
            )
            for name in ("one", "two")
        ]
    )  # fmt: skip
    artefacts = Artefacts(tmp_path / "storage")
    await artefacts.open()
    settings = Settings(cwd=tmp_path, cuckoo=CuckooSection(freespace=0))
    bench = Bench(store, Machines(store, rows[:1]), settings, artefacts, writes)

    async def make_report(_folder: Path, task: Task, *_: object, **__: object) -> list[str]:
        bench.note(f"report {task.id}")
        return [] if bench.report is None else await bench.report(task.id)

    monkeypatch.setattr(module, "make_report", make_report)
    yield bench
    if bench.scheduler is not None:
        await bench.scheduler.close()
    await artefacts.close()
    await store.close()


def timers() -> list[asyncio.TimerHandle]:
    """What the event loop would do by the clock alone."""
    return [h for h in asyncio.get_running_loop()._scheduled if not h.cancelled()]  # type: ignore[attr-defined]


def pass_time(seconds: float) -> None:
    """Let the event loop do what is due by then, now."""
    now = asyncio.get_running_loop().time()
    for timer in timers():
        if timer.when() <= now + seconds:
            timer._run()
            timer.cancel()


async def test_the_highest_priority_goes_first_and_then_the_oldest(bench: Bench) -> None:
    for priority in (1, 3, 2, 3, 1):
        last = await bench.submit(priority=priority)
    bench.open()
    await bench.until_status(5, Status.REPORTED)

    assert [line for line in bench.log if line.startswith("run")] == [
        f"run {task_id} on one" for task_id in (2, 4, 3, 1, last)
    ]


async def test_of_the_free_machines_only_those_are_tried_that_a_task_fits(bench: Bench) -> None:
    bench.machines.rows = [
        msgspec.structs.replace(bench.machines.rows[0], name=f"m{n}", label=f"m{n}")
        for n in range(200)
    ]
    await bench.store.machines.sync(bench.machines.rows)
    for _ in range(3):
        await bench.submit()
    await bench.submit(machine="m150")
    await bench.submit(platform="windows")
    bench.open()
    await bench.until_status(4, Status.REPORTED)
    await bench.at_rest()

    assert sorted(line for line in bench.log if line.startswith("run")) == [
        "run 1 on m0", "run 2 on m1", "run 3 on m2", "run 4 on m150",
    ]  # fmt: skip
    assert len(bench.machines.asked) <= 2 * 4, "and not each of two hundred"
    assert await bench.status(5) == Status.PENDING


async def test_it_rests_until_something_happens(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    completed = bench.store.tasks.completed

    async def counted() -> list[int]:
        looks.append(1)
        return await completed()

    monkeypatch.setattr(type(bench.store.tasks), "completed", lambda _: counted())
    scheduler = bench.open()
    await bench.at_rest()
    assert len(looks) == 1
    assert timers() == []

    task_id = await bench.submit()
    assert len(looks) == 1  # nobody told it
    scheduler.wake()
    await bench.until_status(task_id, Status.REPORTED)


async def test_a_machine_that_becomes_free_wakes_it(bench: Bench) -> None:
    bench.machines.quarantined["one"] = "resting"
    task_id = await bench.submit()
    bench.open()
    await bench.at_rest()
    assert await bench.status(task_id) == "pending"

    del bench.machines.quarantined["one"]
    bench.machines.changed.set()
    await bench.until_status(task_id, Status.REPORTED)


async def test_every_free_machine_gets_a_task(bench: Bench) -> None:
    bench.machines.rows = await bench.store.machines.list()
    gate = asyncio.Event()

    async def analyse(_lease: Lease) -> list[str]:
        await gate.wait()
        return []

    bench.analyse = analyse
    for _ in range(3):
        last = await bench.submit()
    bench.open()
    await bench.until(lambda: len(bench.log) == 2)
    assert bench.log == ["run 1 on one", "run 2 on two"]
    gate.set()
    await bench.until_status(last, Status.REPORTED)


async def test_a_full_disk_is_looked_at_by_one_clock_however_often_it_is_woken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [0]
    monkeypatch.setattr(disk, "free_bytes", lambda _: free[0])
    bench.settings = Settings(cwd=bench.settings.cwd, cuckoo=CuckooSection(freespace=10))
    task_id = await bench.submit()
    scheduler = bench.open()
    for _ in range(5):
        scheduler.wake()
        await bench.at_rest()
    assert bench.log == []
    assert len(timers()) == 1

    free[0] = 11
    pass_time(module.RECHECK)
    await bench.until_status(task_id, Status.REPORTED)
    assert await bench.status(task_id) == "reported"


async def test_a_failed_look_is_not_the_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = [Unavailable("The database is busy"), OSError("storage is gone")]

    def free_bytes(_path: Path) -> int:
        if failures:
            raise failures.pop()
        return 0

    monkeypatch.setattr(disk, "free_bytes", free_bytes)
    task_id = await bench.submit()
    bench.open()
    for _ in range(2):
        await bench.at_rest()
        pass_time(module.RECHECK)
    await bench.until_status(task_id, Status.REPORTED)


async def test_the_machines_fault_costs_it_its_rest_and_the_task_an_attempt(bench: Bench) -> None:
    async def analyse(lease: Lease) -> list[str]:
        raise InfrastructureFault(f"{lease.machine.name}: broken")

    bench.machines.rows = await bench.store.machines.list()
    bench.analyse = analyse
    task_id = await bench.submit()
    bench.open()
    await bench.until(lambda: len(bench.machines.quarantined) == 2 and not bench.machines.taken)

    assert bench.machines.quarantined == {"one": "one: broken", "two": "two: broken"}
    task = await bench.store.tasks.get(task_id)
    assert (task.status, task.errors) == ("pending", ["one: broken", "two: broken"])


@pytest.mark.parametrize("fault", [Unavailable("The disk is full"), ZeroDivisionError()])
async def test_other_faults_cost_attempts_only(bench: Bench, fault: Exception) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        raise fault

    bench.analyse = analyse
    task_id = await bench.submit()
    bench.open()
    await bench.until_status(task_id, Status.FAILED_ANALYSIS)

    assert bench.log == [f"run {task_id} on one"] * 3
    assert bench.machines.quarantined == {}


@pytest.mark.parametrize("on_down", ["wait", "fail"])
async def test_a_route_that_goes_down_after_the_claim_costs_no_attempt(
    bench: Bench, on_down: str
) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        router.down = frozenset({""} if on_down == "wait" else ())
        raise RouteDown("The route vpn0 cannot be had")

    class Shutter(Router):
        down: frozenset[str] = frozenset()

        def shut(self) -> frozenset[str]:
            return self.down

    router = bench.router = Shutter()
    bench.analyse = analyse
    task_id = await bench.submit()
    bench.open()
    ran = [f"run {task_id} on one"]
    if on_down == "fail":
        await bench.until_status(task_id, Status.FAILED_ANALYSIS)
        assert bench.log == ran
        return
    await bench.until(lambda: bench.log == ran and not bench.machines.taken)
    await bench.at_rest()
    assert await bench.status(task_id) == "pending"
    bench.analyse, router.down = None, frozenset()
    bench.scheduler.wake()
    await bench.until_status(task_id, Status.REPORTED)


async def test_the_samples_own_faults_are_kept_and_reported(bench: Bench) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        return ["it crashed"]

    async def report(_task_id: int) -> list[str]:
        return ["it crashed", "static: no ELF"]

    bench.analyse, bench.report = analyse, report
    task_id = await bench.submit()
    bench.open()
    await bench.until_status(task_id, Status.REPORTED)

    task = await bench.store.tasks.get(task_id)
    assert task.errors == ["it crashed", "static: no ELF"]


async def test_a_machine_is_free_again_before_the_report_is_made(bench: Bench) -> None:
    seen: list[set[str]] = []

    async def report(_task_id: int) -> list[str]:
        seen.append(set(bench.machines.taken))
        return []

    bench.report = report
    task_id = await bench.submit()
    bench.open()
    await bench.until_status(task_id, Status.REPORTED)

    assert seen == [set()]


async def test_a_stop_breaks_off_what_runs_and_gives_everything_back(bench: Bench) -> None:
    broken_off: list[int] = []

    async def analyse(lease: Lease) -> list[str]:
        try:
            await asyncio.Event().wait()
        finally:
            broken_off.append(lease.task.id)
        return []

    bench.analyse = analyse
    task_id = await bench.submit()
    scheduler = bench.open()
    await bench.until(lambda: bool(bench.log))
    await scheduler.close()

    assert broken_off == [task_id]
    assert await bench.status(task_id) == "pending"
    assert bench.machines.taken == set()
    assert not any(machine.locked for machine in await bench.store.machines.list())


@dataclass
class Gate:
    """Holds up whoever calls the function that it stands before."""

    function: Callable[..., Any]
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, *args: Any, **values: Any) -> Any:
        self.reached.set()
        await self.opened.wait()
        return await self.function(*args, **values)

    async def stop(self, scheduler: Scheduler) -> None:
        """Stop the scheduler while somebody stands before the gate, which then opens."""
        await self.reached.wait()
        stopping = asyncio.create_task(scheduler.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.opened.set()
        await stopping


@pytest.mark.parametrize("moment", ["release", "errors", "completed"])
async def test_an_analysis_that_has_ended_is_kept_although_the_server_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        return ["It ended so"]

    where, name = {
        "release": (bench.machines, "release"),
        "errors": (bench.store.tasks, "add_error"),
        "completed": (bench.store.tasks, "transition"),
    }[moment]
    gate = Gate(getattr(where, name))
    monkeypatch.setattr(where, name, gate, raising=False)
    bench.analyse = analyse
    task_id = await bench.submit()
    await gate.stop(bench.open())
    assert await bench.status(task_id) == "completed"
    assert (await bench.store.tasks.get(task_id)).errors == ["It ended so"]
    assert bench.machines.taken == set()

    bench.open()
    await bench.until_status(task_id, Status.REPORTED)
    assert bench.log == [f"run {task_id} on one", f"report {task_id}"]


@pytest.mark.parametrize("fault", [InfrastructureFault("one: gone"), Unavailable("no"), KeyError()])
async def test_an_attempt_that_failed_counts_although_the_server_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        raise fault

    gate = Gate(bench.store.tasks.requeue)
    monkeypatch.setattr(bench.store.tasks, "requeue", gate, raising=False)
    bench.analyse = analyse
    task_id = await bench.submit()
    await gate.stop(bench.open())
    assert await bench.status(task_id) == "pending"
    assert len((await bench.store.tasks.get(task_id)).errors) == 1
    assert bench.machines.taken == set()


async def test_a_stop_at_the_moment_of_a_lease_gives_it_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        await asyncio.Event().wait()
        return []

    stopping: list[asyncio.Task[None]] = []
    bench.analyse = analyse
    task_id = await bench.submit()
    scheduler = bench.open()
    spawn = scheduler._spawn

    def stop_first(*what: Any) -> None:
        stopping.append(asyncio.create_task(scheduler.close()))
        spawn(*what)

    monkeypatch.setattr(scheduler, "_spawn", stop_first)
    await bench.until(lambda: bool(stopping))
    await stopping[0]
    assert await bench.status(task_id) == "pending"
    assert bench.machines.taken == set()


async def test_a_cancelled_analysis_ends_and_what_there_is_is_reported(bench: Bench) -> None:
    async def analyse(_lease: Lease) -> list[str]:
        await asyncio.Event().wait()
        return []

    bench.analyse = analyse
    task_id = await bench.submit()
    scheduler = bench.open()
    await bench.until(lambda: bool(bench.log))
    await bench.store.tasks.cancel(task_id)
    scheduler.wake()
    await bench.until(lambda: f"report {task_id}" in bench.log)

    assert await bench.status(task_id) == "cancelled"
    task = await bench.store.tasks.get(task_id)
    assert task.errors == ["The analysis was cancelled"]
    assert bench.machines.taken == set()


async def completed(bench: Bench, count: int) -> list[int]:
    """Tasks that an earlier process analysed and did not report."""
    ids = [await bench.submit() for _ in range(count)]
    for task_id in ids:
        await bench.store.tasks.transition(task_id, Status.PENDING, Status.RUNNING)
        await bench.store.tasks.transition(task_id, Status.RUNNING, Status.COMPLETED)
    return ids


async def test_what_lacks_its_report_gets_it_two_at_a_time_and_once_each(bench: Bench) -> None:
    now: set[int] = set()
    most: list[int] = []
    gate = asyncio.Event()

    async def report(task_id: int) -> list[str]:
        now.add(task_id)
        most.append(len(now))
        await gate.wait()
        now.remove(task_id)
        return []

    bench.report = report
    ids = await completed(bench, 5)
    scheduler = bench.open()
    await bench.until(lambda: len(now) == 2)
    scheduler.wake()
    await bench.at_rest()
    gate.set()
    for task_id in ids:
        await bench.until_status(task_id, Status.REPORTED)

    assert max(most) == 2
    assert sorted(bench.log) == [f"report {task_id}" for task_id in ids]


async def test_a_report_that_fails_is_the_tasks_last_state(bench: Bench) -> None:
    async def report(_task_id: int) -> list[str]:
        raise module.ProcessingFailed("No report was written")

    bench.report = report
    [task_id] = await completed(bench, 1)
    bench.open()
    await bench.until_status(task_id, Status.FAILED_PROCESSING)

    assert (await bench.store.tasks.get(task_id)).errors == ["No report was written"]


async def test_a_report_that_a_stop_breaks_off_is_made_by_the_next_start(bench: Bench) -> None:
    async def report(_task_id: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    bench.report = report
    [task_id] = await completed(bench, 1)
    scheduler = bench.open()
    await bench.until(lambda: bool(bench.log))
    await scheduler.close()
    assert await bench.status(task_id) == "completed"

    bench.report = None
    bench.open()
    await bench.until_status(task_id, Status.REPORTED)
