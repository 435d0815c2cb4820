"""Whoever is to be told of a task's end stands in the store from that moment on."""

from __future__ import annotations

import asyncio
import time

import pytest
from store_data import machine, url

from cuckoo_api.model.task import FINAL, Status
from cuckoo_api.store import Store
from cuckoo_api.store.deliveries import SHARE
from cuckoo_api.store.triggers import TASK_ENDED

MINE = "https://mine.example/hook"
ALL = "https://all.example/hook"


async def told(store: Store) -> list[tuple[int, str, str]]:
    return [(d.task_id, d.status.value, d.url) for d in await store.deliveries.first()]


async def test_a_task_that_ends_is_told_to_its_callback_and_to_all_that_are_configured(
    store: Store,
) -> None:
    [linux] = await store.machines.sync([machine()])
    await store.deliveries.configure([ALL, ALL])
    [task_id] = await store.tasks.submit([url(callback=MINE)])
    await store.tasks.claim(linux)
    await store.tasks.transition(task_id, Status.RUNNING, Status.COMPLETED)
    assert await told(store) == []
    await store.tasks.transition(task_id, Status.COMPLETED, Status.REPORTED)
    assert sorted(await told(store)) == [(task_id, "reported", ALL), (task_id, "reported", MINE)]
    [first, _] = await store.deliveries.first()
    assert (first.attempts, abs(first.due - time.time()) < 60) == (0, True)


async def test_nobody_is_told_where_nobody_asked(store: Store) -> None:
    await store.deliveries.configure([ALL])
    await store.deliveries.configure([])
    [task_id] = await store.tasks.submit([url()])
    await store.tasks.cancel(task_id)
    assert await told(store) == []


async def test_one_address_is_told_once(store: Store) -> None:
    await store.deliveries.configure([ALL])
    [task_id] = await store.tasks.submit([url(callback=ALL)])
    await store.tasks.cancel(task_id)
    assert await told(store) == [(task_id, "cancelled", ALL)]


async def test_a_rescheduled_task_keeps_its_callback(store: Store) -> None:
    [task_id] = await store.tasks.submit([url(callback=MINE)])
    new_id = await store.tasks.reschedule(task_id)
    assert new_id is not None
    await store.tasks.cancel(new_id)
    assert await told(store) == [(task_id, "recovered", MINE), (new_id, "cancelled", MINE)]


async def test_what_was_put_off_comes_later_and_what_is_forgotten_never(store: Store) -> None:
    ids = await store.tasks.submit([url(callback=MINE), url(callback=MINE)])
    for task_id in ids:
        await store.tasks.cancel(task_id)
    first, second = await store.deliveries.first()
    await store.deliveries.put_off(first, first.due + 100)
    again = await store.deliveries.first()
    assert [(d.id, d.attempts) for d in again] == [(second.id, 0), (first.id, 1)]
    assert again[1].due == first.due + 100
    await store.deliveries.forget(second)
    assert [d.id for d in await store.deliveries.first()] == [first.id]


async def test_a_deleted_task_is_told_to_nobody(store: Store) -> None:
    [task_id] = await store.tasks.submit([url(callback=MINE)])
    await store.tasks.cancel(task_id)
    await store.tasks.delete(task_id)
    assert await told(store) == []


async def test_a_callback_is_shown_to_nobody(store: Store) -> None:
    [task_id] = await store.tasks.submit([url(callback=MINE)])
    assert "mine.example" not in repr(await store.tasks.get(task_id))


def test_the_ends_are_those_of_the_model() -> None:
    for status in Status:
        assert (f"'{status.value}'" in TASK_ENDED) is (status not in FINAL)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["http://a", "https://many.example", "https://m.example:8443"])
async def test_one_receiver_s_many_do_not_hide_another_s(store: Store, host: str) -> None:
    urls = [f"{host}/{number}" for number in range(SHARE + 5)]
    few = "https://few.example"
    tasks = await store.tasks.submit([url(callback=callback) for callback in [*urls, few]])
    await asyncio.gather(*(store.tasks.cancel(task_id) for task_id in tasks))
    found = await store.deliveries.first()
    assert [delivery.url for delivery in found] == [*urls[:SHARE], few]
    assert [delivery.receiver for delivery in found] == [host] * SHARE + [few]
