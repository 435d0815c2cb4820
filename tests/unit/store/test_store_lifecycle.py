"""What may be asked of a task later: once more, no more, forgotten."""

from __future__ import annotations

import pytest
from store_data import HASH, machine, sample, url

from cuckoo_api.model.errors import Conflict
from cuckoo_api.model.task import NewTask, Status, Task
from cuckoo_api.store import Store, TaskFilter

pytestmark = pytest.mark.slow

PATHS = {
    Status.PENDING: (),
    Status.RUNNING: (Status.RUNNING,),
    Status.COMPLETED: (Status.RUNNING, Status.COMPLETED),
    Status.REPORTED: (Status.RUNNING, Status.COMPLETED, Status.REPORTED),
    Status.FAILED_ANALYSIS: (Status.RUNNING, Status.FAILED_ANALYSIS),
    Status.FAILED_PROCESSING: (Status.RUNNING, Status.COMPLETED, Status.FAILED_PROCESSING),
    Status.FAILED_REPORTING: (Status.RUNNING, Status.COMPLETED, Status.FAILED_REPORTING),
    Status.CANCELLED: (Status.CANCELLED,),
    Status.RECOVERED: (Status.RECOVERED,),
}


async def task_in(store: Store, status: Status) -> int:
    [task_id] = await store.tasks.submit([url()])
    source = Status.PENDING
    for target in PATHS[status]:
        assert await store.tasks.transition(task_id, source, target)
        source = target
    return task_id


async def the(store: Store, task_id: int) -> Task:
    task = await store.tasks.get(task_id)
    assert task is not None
    return task


async def test_a_rescheduled_task_is_the_same_but_for_its_history(store: Store) -> None:
    asked = NewTask(
        category="file",
        target="a.exe",
        machine="one",
        package="exe",
        options={"free": "yes"},
        timeout=7,
        priority=2,
        custom="c",
        owner="o",
        platform="linux",
        memory=True,
        enforce_timeout=True,
        clock="2020-01-02 03:04:05",
        tags=["x", "y"],
    )
    [old] = await store.tasks.submit([asked], sample())
    [one] = await store.machines.sync([machine(tags=("x", "y"))])
    assert await store.tasks.claim(one)
    await store.tasks.transition(old, Status.RUNNING, Status.COMPLETED)
    await store.tasks.transition(old, Status.COMPLETED, Status.REPORTED, error="it went wrong")
    new = await store.tasks.reschedule(old)
    assert new is not None
    before, after = await the(store, old), await the(store, new)
    assert before.status is Status.RECOVERED
    assert (after.status, after.errors, after.started_on, after.duration) == (
        Status.PENDING,
        [],
        None,
        -1,
    )
    for name in NewTask.__struct_fields__:
        if name not in ("submit_id", "callback"):  # nobody is shown the latter
            assert getattr(after, name) == getattr(before, name), name
    assert after.sample == before.sample
    # the tags are more than its looks: the list finds it, and so does a machine
    assert [t.id for t in await store.tasks.page(TaskFilter(tags=("y",)), limit=None)] == [new, old]
    await store.machines.unlock("one")
    claimed = await store.tasks.claim(one)
    assert claimed is not None
    assert claimed.id == new


async def test_a_new_priority_is_the_new_task_s_alone(store: Store) -> None:
    [old] = await store.tasks.submit([url(priority=1)])
    new = await store.tasks.reschedule(old, 3)
    assert new is not None
    assert ((await the(store, old)).priority, (await the(store, new)).priority) == (1, 3)
    again = await store.tasks.reschedule(old)
    assert again not in (None, old, new)


async def test_what_does_not_exist_is_none(store: Store) -> None:
    assert await store.tasks.reschedule(9) is None
    assert await store.tasks.cancel(9) is None
    assert await store.tasks.delete(9) is None


@pytest.mark.parametrize("status", list(Status))
async def test_which_states_may_be_left_how(store: Store, status: Status) -> None:
    """One table, so that nobody has to look for it in three places."""
    cancel = status in {Status.PENDING, Status.RUNNING, Status.COMPLETED}
    delete = status not in {Status.RUNNING, Status.COMPLETED}
    reschedule = status is not Status.RUNNING
    for allowed, ask in (
        (cancel, store.tasks.cancel),
        (delete, store.tasks.delete),
        (reschedule, store.tasks.reschedule),
    ):
        task_id = await task_in(store, status)
        if allowed:
            assert await ask(task_id) is not None
            continue
        with pytest.raises(Conflict):
            await ask(task_id)
        assert (await the(store, task_id)).status is status


async def test_a_cancelled_task_is_stopped_where_it_runs(store: Store) -> None:
    [waiting, running] = [(await store.tasks.submit([url()]))[0] for _ in range(2)]
    [one] = await store.machines.sync([machine()])
    assert await store.tasks.cancel(waiting) is Status.PENDING
    claimed = await store.tasks.claim(one)
    assert claimed is not None
    assert claimed.id == running, "what is cancelled is never claimed"
    assert await store.tasks.to_stop() == []
    assert await store.tasks.cancel(running) is Status.RUNNING
    assert await store.tasks.to_stop() == [running]
    assert (await the(store, running)).completed_on is not None
    await store.machines.unlock("one")
    assert await store.tasks.to_stop() == []


async def test_a_sample_is_forgotten_with_its_last_task(store: Store) -> None:
    new = NewTask(category="file", target="a", tags=["t"])
    [first, second] = [(await store.tasks.submit([new], sample()))[0] for _ in range(2)]
    assert await store.tasks.delete(first) == ""
    assert await store.samples.find("sha256", HASH)
    assert await store.tasks.delete(second) == HASH
    assert await store.samples.find("sha256", HASH) is None
    assert await store.tasks.page(TaskFilter(tags=("t",)), limit=None) == []
    [third] = await store.tasks.submit([new], sample())
    assert third not in (first, second), "an id is never given twice"


async def test_what_waits_for_its_report_is_found(store: Store) -> None:
    task_id = await task_in(store, Status.REPORTED)
    assert await store.tasks.completed() == []
    assert await store.tasks.transition(task_id, Status.REPORTED, Status.COMPLETED)
    assert await store.tasks.completed() == [task_id]
