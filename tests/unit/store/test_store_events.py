"""Each change of a task's or machine's state is an event, and nothing else is one."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from store_data import machine, url

from cuckoo_api.model.errors import Conflict
from cuckoo_api.model.task import Status
from cuckoo_api.store import Store
from cuckoo_api.store.connection import Transaction


async def events(store: Store, last: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Kinds and data, without the time, which is checked here."""
    found = []
    for event in await store.events.after(last):
        data = json.loads(event.data)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", data.pop("time"))
        found.append((event.kind, data))
    return found


async def states(store: Store, task_id: int) -> list[tuple[str | None, str | None]]:
    return [
        (data["previous"], data["status"])
        for kind, data in await events(store)
        if kind == "task" and data["id"] == task_id
    ]


async def test_a_task_tells_of_every_state_from_its_submission_to_its_end(store: Store) -> None:
    [linux] = await store.machines.sync([machine()])
    [task_id] = await store.tasks.submit([url()])
    await store.tasks.claim(linux)
    await store.tasks.transition(task_id, Status.RUNNING, Status.COMPLETED)
    await store.tasks.add_error(task_id, "this is no change of state")
    await store.tasks.transition(task_id, Status.COMPLETED, Status.REPORTED)
    await store.tasks.delete(task_id)
    assert await states(store, task_id) == [
        (None, "pending"),
        ("pending", "running"),
        ("running", "completed"),
        ("completed", "reported"),
        ("reported", None),
    ]


async def test_a_task_that_is_tried_again_or_rescheduled_tells_of_it(store: Store) -> None:
    [linux] = await store.machines.sync([machine()])
    [task_id] = await store.tasks.submit([url()])
    await store.tasks.claim(linux)
    await store.tasks.requeue(task_id, "no agent", max_attempts=3)
    new_id = await store.tasks.reschedule(task_id)
    assert new_id is not None
    await store.tasks.cancel(new_id)
    assert (await states(store, task_id))[2:] == [("running", "pending"), ("pending", "recovered")]
    assert await states(store, new_id) == [(None, "pending"), ("pending", "cancelled")]


async def test_a_machine_tells_of_its_state_its_lease_and_its_quarantine(store: Store) -> None:
    [one] = await store.machines.sync([machine()])
    [task_id] = await store.tasks.submit([url()])
    begin = await store.events.newest()
    await store.machines.set_status("one-label", "fake", "poweroff")
    await store.machines.set_status("one-label", "fake", "poweroff")
    await store.tasks.claim(one)
    await store.machines.set_quarantine("one", "it does not start")
    await store.machines.unlock("one")
    await store.machines.unlock("one")
    same = {"id": one.id, "name": "one", "status": "poweroff", "previous": "poweroff"}
    free = {"locked": False, "task_id": None, "quarantine": None}
    assert [data for kind, data in await events(store, begin) if kind == "machine"] == [
        {**same, "previous": None, **free},
        {**same, **free, "locked": True, "task_id": task_id},
        {**same, "locked": True, "task_id": task_id, "quarantine": "it does not start"},
        {**same, **free, "quarantine": "it does not start"},
    ]


async def test_what_did_not_happen_is_not_told(store: Store) -> None:
    [task_id] = await store.tasks.submit([url()])
    newest = await store.events.newest()

    async def broken(transaction: Transaction) -> None:
        await transaction._connection.execute("DELETE FROM tasks")  # type: ignore[misc]  # it fails there

    with pytest.raises(TypeError):
        await store.database.write(broken)
    assert not await store.tasks.transition(task_id, Status.RUNNING, Status.COMPLETED)
    await store.tasks.cancel(task_id)
    with pytest.raises(Conflict):
        await store.tasks.cancel(task_id)
    # and no id was used up: whoever follows takes a hole for something missed
    assert [event.id for event in await store.events.after(newest)] == [newest + 1]


async def test_the_newest_ten_thousand_are_kept(store: Store) -> None:
    with sqlite3.connect(store.database.path) as raw:
        raw.executemany("INSERT INTO events (kind, data) VALUES (?, ?)", [("task", "{}")] * 10_005)
    raw.close()
    [task_id] = await store.tasks.submit([url()])
    assert await store.events.newest() == 10_006
    first = await store.events.after(0)
    assert (first[0].id, len(first)) == (7, 100)
    assert (await events(store, 10_005))[0][1]["id"] == task_id


async def test_each_commit_with_an_event_is_announced_and_no_other(store: Store) -> None:
    await store.machines.sync([machine()])
    [task_id] = await store.tasks.submit([url()])
    announced: list[int] = []
    store.database.on_event = lambda: announced.append(1)
    await store.tasks.set_route(task_id, "none")
    assert announced == []
    await store.tasks.cancel(task_id)
    assert announced == [1]
    await store.machines.set_quarantine("one", "no")
    assert announced == [1, 1]


async def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2):
        store = await Store.open(f"sqlite:///{tmp_path}/cuckoo.db")
        await store.tasks.submit([url()])
        assert await store.events.newest() == expected
        await store.close()
