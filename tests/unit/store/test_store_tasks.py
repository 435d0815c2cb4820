"""Lists, the queue and changes of state, where the data are many or hostile."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec
import pytest
from store_data import machine, sample, url

from cuckoo_api.model.errors import BadInput, Conflict
from cuckoo_api.model.task import Guest, NewTask, Status, Task
from cuckoo_api.store import Store, TaskFilter, claim, listing
from cuckoo_api.store.connection import Statement

pytestmark = pytest.mark.slow

MANY = listing.CHUNK + 10


def plan(store: Store, statement: Statement) -> list[str]:
    """How SQLite will run it."""
    connection = sqlite3.connect(store.database.path)
    names = dict.fromkeys(
        ["status", "owner", "sample", "last_id", "last_date", "limit", "offset"], 1
    )
    values = {**names, **statement.constants}
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", values).fetchall()
    connection.close()
    return [row[3] for row in rows]


async def test_a_submission_of_several_tasks_is_kept_whole_under_one_number(store: Store) -> None:
    new = NewTask(category="archive", target="a.zip")
    assert await store.tasks.submit_all([]) == (1, [])
    assert await store.tasks.submit_all([(url(), None), (new, sample())]) == (2, [1, 2])
    with pytest.raises(BadInput):
        await store.tasks.submit_all([(url(), None), (url(custom="\ud800"), None)])
    assert await store.tasks.submit_all([(url(), None)]) == (3, [3])
    kept = await store.tasks.page(TaskFilter(), limit=None)
    assert [(task.submit_id, task.sample_id) for task in kept] == [(2, None), (2, 1), (3, None)]


async def test_a_view_has_the_fields_of_the_api_in_their_order(store: Store) -> None:
    [one] = await store.tasks.submit([url()])
    [two] = await store.tasks.submit([NewTask(category="file", target="a")], sample())
    await store.tasks.set_guest(two, Guest(name="n", label="l", manager="m"))
    await store.tasks.set_route(two, "none")
    bare, full = await store.tasks.get(one), await store.tasks.get(two)
    assert bare is not None
    assert full is not None
    shown = msgspec.to_builtins(bare)
    assert list(shown) == list(Task.__struct_fields__)
    assert (shown["guest"], shown["sample"], shown["errors"]) == ({}, {}, [])
    shown = msgspec.to_builtins(full)
    assert list(shown) == list(Task.__struct_fields__)
    assert isinstance(full.guest, Guest)
    assert shown["guest"]["shutdown_on"] is None
    assert (shown["sample"]["sha256"], shown["sample"]["ssdeep"]) == (sample().sha256, None)
    assert full.route == "none"


async def test_a_task_completed_while_the_list_streams_is_in_it_once(store: Store) -> None:
    ids = await store.tasks.submit([url() for _ in range(MANY)])
    seen = []
    async for task in store.tasks.each(TaskFilter()):
        if not seen:
            assert await store.tasks.transition(task.id, Status.PENDING, Status.CANCELLED)
        seen.append(task.id)
    assert seen == ids


@pytest.mark.parametrize("name", ["status", "owner", "sample"])
@pytest.mark.parametrize("part", ["all", "unfinished", "finished"])
async def test_a_filtered_list_sorts_nothing(store: Store, name: str, part: listing.Part) -> None:
    steps = plan(store, listing._list_sql(frozenset({name}), 0, part))
    assert any(f"tasks_{name}" in step for step in steps), steps
    assert not any("TEMP B-TREE" in step for step in steps), steps


async def test_a_filter_of_thousands_of_tags_is_an_answer(store: Store) -> None:
    [wanted] = await store.tasks.submit([url(tags=["a", "a", "b"])])
    tags = tuple(f"t{n}" for n in range(4000))
    assert await store.tasks.page(TaskFilter(tags=tags), limit=5) == []
    [task] = await store.tasks.page(TaskFilter(tags=("b", "a", "b")), limit=5)
    assert (task.id, task.tags) == (wanted, ["a", "b"])


async def test_text_that_is_no_unicode_is_refused_or_matches_nothing(store: Store) -> None:
    with pytest.raises(BadInput, match="not valid Unicode"):
        await store.tasks.submit([url("http://\udc80/")])
    assert await store.tasks.page(TaskFilter(owner="\udc80"), limit=None) == []
    assert await store.machines.get("\udc80") is None
    assert await store.samples.find("sha256", "\udc80") is None
    assert await store.tasks.page(TaskFilter(), limit=None) == []


async def test_errors_are_cleaned_and_bounded(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    await store.tasks.add_error(task_id, 'bad \udc80 "quote"')
    await store.tasks.add_error(task_id, "x" * 100_000)
    for _ in range(120):
        await store.tasks.add_error(task_id, "again")
    await store.tasks.add_error(99, "nobody's")
    task = await store.tasks.get(task_id)
    assert task is not None
    assert task.errors[0] == 'bad ? "quote"'
    assert len(task.errors[1]) == 4096
    assert len(task.errors) == 100


async def test_a_task_of_a_sample_that_is_gone(store: Store) -> None:
    with pytest.raises(Conflict):
        await store.tasks.submit([url(sample_id=77)])


async def test_a_started_task_is_not_completed(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    assert await store.tasks.transition(task_id, Status.PENDING, Status.RUNNING)
    task = await store.tasks.get(task_id)
    assert task is not None
    assert task.started_on is not None
    assert (task.completed_on, task.duration) == (None, -1)


async def test_a_clock_that_was_set_back_gives_no_negative_duration(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    await store.tasks.transition(task_id, Status.PENDING, Status.RUNNING)
    with sqlite3.connect(store.database.path) as raw:
        raw.execute("UPDATE tasks SET started_on = '2999-01-01 00:00:00'")
    raw.close()
    await store.tasks.transition(task_id, Status.RUNNING, Status.COMPLETED)
    task = await store.tasks.get(task_id)
    assert task is not None
    assert task.duration == 0


async def test_the_queue_is_never_scanned(store: Store) -> None:
    steps = plan(store, claim.BEST_OF_EACH)
    assert not any("SCAN tasks" in step or "TEMP B-TREE" in step for step in steps), steps
    assert all("tasks_queue" in step for step in steps if "SEARCH tasks" in step), steps


async def test_tags_and_names_with_quotes_are_matched_as_they_are(store: Store) -> None:
    odd = ('a"b', "c'd", "é,[x]")
    [one] = await store.machines.sync([machine('m"1', tags=odd)])
    await store.tasks.submit([url(tags=['a"'], priority=5), url(machine='m"', priority=5)])
    [wanted] = await store.tasks.submit([url(tags=list(reversed(odd)), machine='m"1')])
    task = await store.tasks.claim(one)
    assert task is not None
    assert task.id == wanted


async def test_priority_goes_before_age_across_demands(store: Store) -> None:
    [one] = await store.machines.sync([machine(tags=("a", "b"))])
    first = await store.tasks.submit([url(tags=["a"]), url(tags=["b"], priority=2), url()])
    second = await store.tasks.submit([url(priority=2), url(tags=["z"], priority=9)])
    order = []
    while (task := await store.tasks.claim(one)) is not None:
        order.append(task.id)
        await store.machines.unlock("one")
    assert order == [first[1], second[0], first[0], first[2]]


async def test_a_write_may_await_nothing_but_its_transaction(store: Store) -> None:
    async def operation(transaction: object) -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaited something else"):
        await store.database.write(operation)
    assert await store.tasks.submit([url()]) == [1], "the writer goes on"


async def test_a_submission_given_up_before_its_turn_is_not_made(store: Store) -> None:
    given_up = asyncio.ensure_future(store.tasks.submit([url("http://given-up/")]))
    await asyncio.sleep(0)
    given_up.cancel()
    await store.tasks.submit([url("http://kept/")])
    targets = [task.target for task in await store.tasks.page(TaskFilter(), limit=None)]
    assert targets == ["http://kept/"]
