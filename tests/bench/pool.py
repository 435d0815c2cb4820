"""Five hundred machines of four backends and ten thousand tasks: what it takes to give them out.

The hypervisors are fakes in the same process, so what they take is counted too; the analyses do
nothing but start and stop their machine. Their hours pass on a clock of their own.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.poolkit import fill, pool, some_tasks

from cuckoo_api.model.task import NewTask

from .figure import Figure

MACHINES = 500
TASKS = 10_000
ROUNDS = 5
LIMIT = 2.0
"""Seconds for the start."""


def measure(folder: Path) -> list[Figure]:
    """The start, and the processor's time while the queue is worked off."""
    tasks = some_tasks(TASKS, machines=MACHINES)
    starts = [asyncio.run(_start(folder / f"start-{n}", tasks)) for n in range(ROUNDS)]
    return [
        Figure(
            name="500 machines: start until each has a task",
            pairs=[(seconds, LIMIT) for seconds in starts],
            yardstick="allowed",
            unit="s",
            at_most=1.0,
        ),
        Figure(
            name="500 machines: processor for 10,000 tasks",
            pairs=[asyncio.run(_work(folder / "work", tasks))],
            yardstick="for the analyses",
            unit="s",
            at_most=0.05,
            note="scheduler, fleet, store and fakes",
        ),
    ]


async def _start(cwd: Path, tasks: list[NewTask]) -> float:
    """Seconds from nothing open until every machine runs a task."""
    cwd.mkdir()
    await fill(cwd / "cuckoo.db", tasks)
    begin = time.perf_counter()
    async with pool(cwd, tasks, machines=MACHINES, starts=True) as crowd:
        await crowd.busy()
        seconds = time.perf_counter() - begin
        assert len(crowd.runs) == MACHINES
    return seconds


async def _work(cwd: Path, tasks: list[NewTask]) -> tuple[float, float]:
    """Seconds of the processor, and seconds that the analyses took together."""
    cwd.mkdir()
    await fill(cwd / "cuckoo.db", tasks)
    async with pool(cwd, tasks, machines=MACHINES, starts=True) as crowd:
        begin = time.process_time()
        await crowd.drain()
        used = time.process_time() - begin
        assert len(crowd.runs) == TASKS
    return used, crowd.now
