"""What the store promises: one view a statement, atomic leases, no change outside the table."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from store_data import HASH, machine, sample, url

from cuckoo_api.model.errors import BadInput
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import TRANSITIONS, Guest, NewTask, Status
from cuckoo_api.store import Store, TaskFilter

pytestmark = pytest.mark.slow


async def configured(store: Store, *machines: Machine) -> list[Machine]:
    return await store.machines.sync(machines)


async def test_a_task_is_read_back_as_it_was_submitted(store: Store) -> None:
    [task_id] = await store.tasks.submit(
        [
            NewTask(
                category="file",
                target="été €.exe",
                options={"a": "1", 'q"': "ü,=\\"},
                tags=["x", 'y"z'],
                custom="my é custom",
                priority=1 << 40,
                memory=True,
                clock="2016-12-25 23:59:59",
            )
        ],
        sample(),
    )
    task = await store.tasks.get(task_id)
    assert task is not None
    assert task.options == {"a": "1", 'q"': "ü,=\\"}
    assert (task.target, task.custom, task.tags) == ("été €.exe", "my é custom", ["x", 'y"z'])
    assert (task.memory, task.enforce_timeout, task.priority) == (True, False, 1 << 40)
    assert (task.status, task.duration, task.guest, task.errors) == (Status.PENDING, -1, {}, [])
    assert task.clock == "2016-12-25 23:59:59"
    assert not isinstance(task.sample, dict)
    assert task.sample.sha256 == HASH
    assert task.sample_id == task.sample.id


async def test_a_url_has_no_sample_and_its_clock_is_now(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    task = await store.tasks.get(task_id)
    assert task is not None
    assert (task.sample, task.sample_id) == ({}, None)
    assert task.clock == task.added_on


async def test_one_sample_for_one_hash_and_its_tasks(store: Store) -> None:
    new = NewTask(category="file", target="a")
    first = await store.tasks.submit([new, new], sample())
    second = await store.tasks.submit([new], sample())
    for key, value in (("sha256", HASH.upper()), ("md5", sample().md5), ("id", 1)):
        found = await store.samples.find(key, value)  # type: ignore[arg-type]
        assert found is not None
        assert found[0].sha256 == HASH
        assert found[1] == [*first, *second]
    assert await store.samples.find("sha256", "zz") is None


@pytest.mark.parametrize("task_id", [0, -1, 1 << 63, 10**30])
async def test_an_id_that_no_task_can_have(store: Store, task_id: int) -> None:
    assert await store.tasks.get(task_id) is None
    assert await store.samples.find("id", task_id) is None
    assert await store.tasks.page(TaskFilter(sample=1 << 70), limit=None) == []


async def test_the_list_has_unfinished_ones_first_and_streams_the_same(store: Store) -> None:
    ids = await store.tasks.submit([url(f"http://{n}/") for n in range(1203)])
    with sqlite3.connect(store_path(store)) as raw:
        raw.execute(
            "UPDATE tasks SET completed_on = printf('2020-01-%02d 00:00:00', 30 - id % 7) "
            "WHERE id % 2 = 0"
        )
    raw.close()
    page = await store.tasks.page(TaskFilter(), limit=None)
    assert [t.id for t in page[:602]] == [i for i in ids if i % 2]
    dates = [t.completed_on or "" for t in page]
    assert dates == sorted(dates)
    assert [t async for t in store.tasks.each(TaskFilter())] == page
    assert [t async for t in store.tasks.each(TaskFilter(), limit=700, offset=400)] == page[
        400:1100
    ]
    assert await store.tasks.page(TaskFilter(), limit=2, offset=9999) == []


async def test_filters(store: Store) -> None:
    [a] = await store.tasks.submit([url("http://a/", owner="alice", tags=["x", "y"])])
    [b] = await store.tasks.submit([url("http://b/", tags=["x"], machine="m")])
    [c] = await store.tasks.submit([NewTask(category="file", target="f")], sample())

    async def ids(**fields: object) -> list[int]:
        where = TaskFilter(**fields)  # type: ignore[arg-type]
        return [t.id for t in await store.tasks.page(where, limit=None)]

    assert await ids(owner="alice") == [a]
    assert await ids(tags=("x",)) == [a, b]
    assert await ids(tags=("x", "y")) == [a]
    assert await ids(tags=("'",)) == []
    assert await ids(machine="m") == [b]
    assert await ids(category="file", sample=1) == [c]
    assert await ids(after_id=a, target="http://b/") == [b]
    assert await ids(status=Status.RUNNING) == []
    assert await ids(status=Status.PENDING, owner="") == [b, c]


async def test_the_table_of_transitions_is_the_law(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    for source in Status:
        for target in Status:
            with sqlite3.connect(store_path(store)) as raw:
                raw.execute("UPDATE tasks SET status = ?, errors = '[]'", (source.value,))
            raw.close()
            if target not in TRANSITIONS[source]:
                with pytest.raises(ValueError, match=f"never goes from {source} to {target}"):
                    await store.tasks.transition(task_id, source, target)
                continue
            assert await store.tasks.transition(task_id, source, target, error="why")
            task = await store.tasks.get(task_id)
            assert task is not None
            assert (task.status, task.errors) == (target, ["why"])
            assert not await store.tasks.transition(task_id, source, target), "it left"


async def test_completion_has_a_date_and_a_duration(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    [one] = await configured(store, machine())
    assert (await store.tasks.claim(one)) is not None
    with sqlite3.connect(store_path(store)) as raw:
        raw.execute("UPDATE tasks SET started_on = '2020-01-01 00:00:00'")
    raw.close()
    await store.tasks.transition(task_id, Status.RUNNING, Status.COMPLETED)
    task = await store.tasks.get(task_id)
    assert task is not None
    assert task.completed_on is not None
    assert task.duration > 86400 * 365


async def test_the_best_task_is_claimed_with_its_machine(store: Store) -> None:
    [one, two] = await configured(store, machine(), machine("two", "windows", ("office", "x")))
    ids = await store.tasks.submit(
        [
            url(platform="windows", tags=["office"]),
            url(machine="two-label", priority=2),
            url(),
            url(priority=3, tags=["nowhere"]),
            url(priority=2, machine="elsewhere"),
            url(priority=9, platform="darwin"),
        ]
    )
    first = await store.tasks.claim(two)
    assert first is not None
    assert (first.id, first.status, first.machine) == (ids[1], Status.RUNNING, "two")
    assert first.started_on is not None
    assert await store.tasks.claim(two) is None, "it is leased"
    third = await store.tasks.claim(one)
    assert third is not None
    assert third.id == ids[2]
    rows = {m.name: m for m in await store.machines.list()}
    assert (rows["two"].locked, rows["two"].task_id) == (True, ids[1])
    await store.machines.unlock("two")
    second = await store.tasks.claim(two)
    assert second is not None
    assert second.id == ids[0]
    await store.machines.unlock("two")
    await store.machines.unlock("one")
    assert await store.tasks.claim(two) is None, "nothing is left that fits"
    assert await store.tasks.claim(one) is None
    assert not any(m.locked for m in await store.machines.list())


async def test_no_task_is_claimed_twice(store: Store) -> None:
    machines = await configured(store, *(machine(f"m{n}") for n in range(20)))
    await store.tasks.submit([url() for _ in range(12)])
    claimed = await asyncio.gather(*(store.tasks.claim(m) for m in machines))
    ids = [task.id for task in claimed if task is not None]
    assert len(ids) == len(set(ids)) == 12
    assert sum(m.locked for m in await store.machines.list()) == 12


async def test_a_machine_in_quarantine_gets_nothing(store: Store) -> None:
    [one] = await configured(store, machine())
    await store.tasks.submit([url()])
    await store.machines.set_quarantine("one", "it smells")
    assert await store.tasks.claim(one) is None
    await store.machines.set_quarantine("one", None)
    assert await store.tasks.claim(one) is not None


async def test_three_attempts_in_all(store: Store) -> None:
    [one] = await configured(store, machine())
    [task_id] = await store.tasks.submit([url(machine="one-label")])
    seen = []
    for attempt in range(3):
        task = await store.tasks.claim(one)
        assert task is not None
        await store.tasks.set_guest(task_id, Guest(name="one", label="l", manager="fake"))
        seen.append(await store.tasks.requeue(task_id, f"fault {attempt}", max_attempts=3))
        await store.machines.unlock("one")
        if attempt < 2:
            again = await store.tasks.get(task_id)
            assert again is not None
            assert (again.machine, again.guest, again.started_on) == ("one-label", {}, None)
    assert seen == [Status.PENDING, Status.PENDING, Status.FAILED_ANALYSIS]
    task = await store.tasks.get(task_id)
    assert task is not None
    assert task.errors == ["fault 0", "fault 1", "fault 2"]
    assert task.completed_on is not None


async def test_machines_follow_the_configuration(store: Store) -> None:
    [one, _two] = await configured(store, machine(), machine("two"))
    await store.machines.set_status("one-label", "fake", "running")
    before = await store.machines.get("one")
    assert before is not None
    assert (before.status, before.options, before.rcparams) == ("running", ["a", "b"], {})
    changed = msgspec.structs.replace(machine(), ip="192.0.2.77")
    rows = await configured(store, changed, machine("three"))
    assert [(m.name, m.ip) for m in rows] == [("one", "192.0.2.77"), ("three", "192.0.2.1")]
    assert (rows[0].id, rows[0].status) == (one.id, "running")
    assert await store.machines.get("two") is None


async def test_the_date_of_a_state_moves_only_with_the_state(store: Store) -> None:
    await configured(store, machine())
    await store.machines.set_status("one-label", "fake", "running")
    with sqlite3.connect(store_path(store)) as raw:
        raw.execute("UPDATE machines SET status_changed_on = '2020-01-01 00:00:00'")
    raw.close()
    await store.machines.set_status("one-label", "fake", "running")
    [row] = await store.machines.list()
    assert row.status_changed_on == "2020-01-01 00:00:00"
    await store.machines.set_status("one-label", "fake", "poweroff")
    [row] = await store.machines.list()
    assert (row.status, row.status_changed_on != "2020-01-01 00:00:00") == ("poweroff", True)


async def test_one_failed_write_takes_no_other_with_it(store: Store) -> None:
    too_big = msgspec.structs.replace(url(), timeout=1 << 80)
    results = await asyncio.gather(
        store.tasks.submit([url("http://a/")]),
        store.tasks.submit([url("http://half/"), too_big]),
        store.tasks.submit([url("http://c/")]),
        return_exceptions=True,
    )
    assert isinstance(results[1], BadInput)
    assert "64 bits" in str(results[1])
    listed = await store.tasks.page(TaskFilter(), limit=None)
    assert {t.target for t in listed} == {"http://a/", "http://c/"}


def store_path(store: Store) -> Path:
    return store.database.path
