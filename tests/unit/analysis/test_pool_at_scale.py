"""Ten thousand tasks on five hundred machines of four backends: none lost, none wronged."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from cuckoo_api.model.task import Status
from poolkit import fill, pool, some_tasks

pytestmark = pytest.mark.slow

MACHINES = 500
TASKS = 10_000


@pytest.fixture(autouse=True)
def _only_errors_are_logged() -> Iterator[None]:
    """A line for each step takes longer than the step."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.mark.no_cover  # to trace it takes twice as long as to run it
async def test_each_task_runs_once_in_its_turn_and_no_machine_is_idle_meanwhile(
    tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    tasks = some_tasks(TASKS, machines=MACHINES)
    await fill(tmp_path / "cuckoo.db", tasks)
    async with pool(tmp_path, tasks, machines=MACHINES, starts=False) as crowd:
        await crowd.busy()
        assert len(crowd.runs) == MACHINES, "each machine has one, before any has ended"
        await crowd.drain()

        assert crowd.runs == Counter(range(1, TASKS + 1))
        assert crowd.wronged == []
        assert await crowd.store.tasks.counts() == {Status.REPORTED: TASKS}
        assert len(crowd.fleet.free()) == MACHINES
