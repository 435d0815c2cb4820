"""What an earlier process left half done is finished or undone at the next start."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.analysis.recovery import recover
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.task import NewTask, Status
from cuckoo_api.store import Store


@pytest.fixture
async def store(tmp_path: Path, empty_database: Path) -> AsyncIterator[Store]:
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    store = await Store.open(f"sqlite:///{tmp_path / 'cuckoo.db'}")
    yield store
    await store.close()


@pytest.fixture
async def artefacts(tmp_path: Path) -> AsyncIterator[Artefacts]:
    artefacts = Artefacts(tmp_path / "storage")
    await artefacts.open()
    yield artefacts
    await artefacts.close()


async def make_task(store: Store, *path: Status) -> int:
    """A task that went this way from pending."""
    [task_id] = await store.tasks.submit([NewTask(category="url", target="http://e.example/")])
    source = Status.PENDING
    for target in path:
        assert await store.tasks.transition(task_id, source, target)
        source = target
    return task_id


async def test_what_ran_goes_back_to_the_queue_and_nothing_else_changes(
    store: Store, artefacts: Artefacts
) -> None:
    ways = {
        Status.PENDING: (),
        Status.RUNNING: (Status.RUNNING,),
        Status.COMPLETED: (Status.RUNNING, Status.COMPLETED),
        Status.REPORTED: (Status.RUNNING, Status.COMPLETED, Status.REPORTED),
        Status.FAILED_ANALYSIS: (Status.RUNNING, Status.FAILED_ANALYSIS),
        Status.CANCELLED: (Status.RUNNING, Status.CANCELLED),
    }
    ids = {status: await make_task(store, *way) for status, way in ways.items()}
    await recover(store, artefacts)

    after = {status: await store.tasks.get(task_id) for status, task_id in ids.items()}
    became = {status: task.status for status, task in after.items() if task is not None}
    assert became == {status: status for status in ways} | {Status.RUNNING: Status.PENDING}
    requeued = after[Status.RUNNING]
    assert requeued is not None
    assert (requeued.started_on, requeued.machine, requeued.errors) == (None, "", [])


async def test_a_deletion_that_was_broken_off_is_undone_or_finished(
    store: Store, artefacts: Artefacts
) -> None:
    kept, gone = await make_task(store), await make_task(store)
    for task_id in (kept, gone):
        folder = artefacts.analysis(task_id)
        await folder.create(b"{}")
        await folder.hide()
    await store.tasks.delete(gone)
    await recover(store, artefacts)

    assert (artefacts.analysis(kept).path / "task.json").read_bytes() == b"{}"
    assert [path.name for path in artefacts.analysis(kept).path.parent.iterdir()] == [str(kept)]


async def test_a_second_recovery_changes_nothing(store: Store, artefacts: Artefacts) -> None:
    task_id = await make_task(store, Status.RUNNING)
    await recover(store, artefacts)
    first = await store.tasks.get(task_id)
    await recover(store, artefacts)

    assert await store.tasks.get(task_id) == first
