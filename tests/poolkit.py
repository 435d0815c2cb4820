"""A large pool whose analyses take no time: real scheduler, fleet and store, fake hypervisors.

An analysis lasts on a clock of the pool's own. :meth:`Pool.drain` moves it to the next end only
when every fitting machine is busy; a scheduler that leaves one idle is waited for in vain.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from cuckoo_api.analysis import scheduler as module
from cuckoo_api.analysis.run import Workshop
from cuckoo_api.analysis.scheduler import Scheduler
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.fleet import Fleet, Lease, load_plugins
from cuckoo_api.machinery import MachineConfig
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import NewTask
from cuckoo_api.settings import CuckooSection, MachinerySettings, Settings
from cuckoo_api.store import Store
from cuckoo_api.store.claim import Demand
from cuckoo_api.testing.fake import FakeHypervisor, fake_plugin

BACKENDS = {"kvm-a": "linux", "kvm-b": "linux", "esx-a": "windows", "esx-b": "windows"}
"""Names and platforms. Every fifth machine has the tag ``office``."""
DURATIONS = (100, 110, 120, 130, 140)
"""Seconds that analyses last; 120 is the default."""
PATIENCE = 60.0
"""Seconds for machines to be given their tasks; a tenth of one is usual."""


def some_tasks(count: int, *, machines: int) -> list[NewTask]:
    """For a platform or for any, some with a tag, some for one machine alone."""
    choose = random.Random(count)
    names = [f"{name}-{n}" for name in BACKENDS for n in range(0, machines // len(BACKENDS), 25)]

    def task() -> NewTask:
        asked: dict[str, Any] = {"priority": choose.choice((1, 2, 3))}
        if choose.random() < 0.02:
            asked["machine"] = choose.choice(names)
        else:
            asked["platform"] = choose.choice(("linux", "windows", ""))
            asked["tags"] = ["office"] if choose.random() < 0.2 else []
        return NewTask(category="url", target="http://sample.test/", **asked)

    return [task() for _ in range(count)]


async def fill(database: Path, tasks: Sequence[NewTask]) -> None:
    """Submit them; in an empty database their ids are 1, 2 and so on."""
    store = await Store.open(f"sqlite:///{database}")
    await store.tasks.submit(tasks)
    await store.close()


class CountingFleet(Fleet):
    """Knows how many leases are being made."""

    leasing = 0
    told: Callable[[], None]

    async def lease(self, machine: Machine, shut: Collection[str] = frozenset()) -> Lease | None:
        """As the fleet's own."""
        self.leasing += 1
        try:
            return await super().lease(machine, shut)
        finally:
            self.leasing -= 1
            self.told()


class Pool:
    """What was done, and the pool's clock."""

    def __init__(
        self, store: Store, fleet: CountingFleet, tasks: Sequence[NewTask], *, starts: bool
    ) -> None:
        self.store = store
        self.fleet = fleet
        self.now = 0.0
        """Seconds since the beginning, by the analyses' clock."""
        self.runs: Counter[int] = Counter()
        """How often each task was run."""
        self.wronged: list[str] = []
        """Machines that were given another task than the best one for them."""
        self._tasks = {
            task_id: (Demand(task.machine, task.platform, frozenset(task.tags)), -task.priority)
            for task_id, task in enumerate(tasks, 1)
        }
        self.waiting: defaultdict[Demand, list[tuple[int, int]]] = defaultdict(list)
        """The queue as it should be: for each demand the tasks' ranks and ids, best first."""
        for task_id, (demand, rank) in self._tasks.items():
            bisect.insort(self.waiting[demand], (rank, task_id))
        self.scheduler: Scheduler
        self._starts = starts
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._news = asyncio.Event()
        self._durations = random.Random(1)

    async def analyse(self, _workshop: Workshop, lease: Lease) -> list[str]:
        """In the place of a run."""
        self._take(lease)
        if self._starts:
            await lease.restore_and_start()
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lasts = self._durations.choice(DURATIONS)
        heapq.heappush(self._sleepers, (self.now + lasts, next(self._order), end))
        self.told()
        await end
        return []

    def told(self) -> None:
        """A lease was made, an analysis has begun to last, or a task has ended."""
        self._news.set()

    async def busy(self) -> None:
        """Return once no machine is idle that a waiting task fits, and nobody does anything."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not self._all_last():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"these machines have nothing to do: {self.idle()}") from None

    def _all_last(self) -> bool:
        at_work = self.fleet.leasing + len(self.scheduler._running) - len(self._sleepers)
        return not at_work and not self.idle()

    def idle(self) -> list[str]:
        """The free machines that have no excuse."""
        demands = [demand for demand, queue in self.waiting.items() if queue]
        free = self.fleet.free() if demands else []
        return [m.name for m in free if any(demand.fits(m) for demand in demands)]

    async def drain(self) -> None:
        """Run every task to its end."""
        await self.busy()
        while self._sleepers:
            self.now = self._sleepers[0][0]
            while self._sleepers and self._sleepers[0][0] == self.now:
                heapq.heappop(self._sleepers)[2].set_result(None)
            await self.busy()

    def _take(self, lease: Lease) -> None:
        """Take the task out of the queue; it should be the best one for the machine."""
        task_id = lease.task.id
        self.runs[task_id] += 1
        demand, rank = self._tasks[task_id]
        fitting = [q for asked, q in self.waiting.items() if q and asked.fits(lease.machine)]
        best = min((queue[0] for queue in fitting), default=None)
        if best != (rank, task_id):
            self.wronged.append(f"{lease.machine.name}: task {task_id}, and not {best}")
        if (rank, task_id) in self.waiting[demand]:
            self.waiting[demand].remove((rank, task_id))


@asynccontextmanager
async def pool(
    cwd: Path, tasks: Sequence[NewTask], *, machines: int, starts: bool
) -> AsyncIterator[Pool]:
    """Machines for the tasks, which are in ``cwd/cuckoo.db``, and a scheduler that gives them out.

    ``starts``: each analysis also restores and starts its machine.
    """
    async with AsyncExitStack() as stack:
        store = await Store.open(f"sqlite:///{cwd / 'cuckoo.db'}")
        stack.push_async_callback(store.close)
        artefacts = Artefacts(cwd / "storage")
        stack.push_async_callback(artefacts.close)
        await artefacts.open()

        worlds = {name: FakeHypervisor() for name in BACKENDS}
        for name, world in worlds.items():
            await stack.enter_async_context(world)
            for number in range(machines // len(worlds)):
                world.add(f"{name}-{number}", with_guest=False)
        settings = Settings(
            cwd=cwd,
            cuckoo=CuckooSection(machinery=tuple(worlds), freespace=0),
            machinery={name: _machinery(name, world) for name, world in worlds.items()},
        )
        plugins = load_plugins([fake_plugin(world, name=name) for name, world in worlds.items()])
        fleet = CountingFleet(settings, plugins, store)
        stack.push_async_callback(fleet.close)
        await fleet.open()
        await fleet.recover()

        made = Pool(store, fleet, tasks, starts=starts)
        stack.enter_context(mock.patch.object(module, "make_report", _report))
        # reports are not what this is about: they must not wait for each other
        stack.enter_context(mock.patch.object(module, "PARALLEL_REPORTS", machines))
        workshop = Workshop(settings, store, artefacts, None, None)  # type: ignore[arg-type]
        made.scheduler = Scheduler(workshop, fleet, analyse=made.analyse)
        made.scheduler.on_let_go = fleet.told = made.told
        stack.push_async_callback(made.scheduler.close)
        made.scheduler.open()
        yield made


def _machinery(name: str, world: FakeHypervisor) -> MachinerySettings:
    return MachinerySettings(
        name=name,
        options={},
        machines=tuple(
            MachineConfig(
                label=label,
                name=label,
                platform=BACKENDS[name],
                tags=() if number % 5 else ("office",),
                snapshot="clean",
            )
            for number, label in enumerate(world.machines)
        ),
    )


async def _report(*_: object, **__: object) -> list[str]:
    return []
