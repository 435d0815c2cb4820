"""A stop that waits for running analyses, and an API that goes on beside it."""

from __future__ import annotations

import asyncio
import os

import pytest
from fakekit import PATIENCE, Gate, Site

from cuckoo_api.http.keys import SWITCH

pytestmark = pytest.mark.slow


def drained(site: Site) -> asyncio.Future[None]:
    assert site.app is not None
    drain = site.app[SWITCH].drain
    assert drain is not None
    return asyncio.ensure_future(drain())


async def test_what_runs_comes_to_its_report_and_nothing_else_begins(site: Site) -> None:
    gate = Gate()
    site.add("one", gate)
    site.add("two", tags=["other"])
    await site.start()
    running = await site.submit(machine="one")
    await site.running("one")
    done = drained(site)
    waiting = await site.submit(machine="two")
    await site.at_rest()
    assert not done.done()
    gate.open.set()
    async with asyncio.timeout(PATIENCE):
        await done

    assert (await site.task(running))["status"] == "reported"
    assert (await site.task(waiting))["status"] == "pending"
    await site.stop()
    await site.start()
    assert (await site.until(waiting, "reported"))["errors"] == []
    await site.free()


async def test_what_is_cancelled_meanwhile_is_stopped(site: Site) -> None:
    site.add("one", Gate())
    await site.start()
    running = await site.submit()
    await site.running("one")
    done = drained(site)
    await site.post(f"/tasks/cancel/{running}")
    async with asyncio.timeout(PATIENCE):
        await done
    assert (await site.task(running))["status"] == "cancelled"
    await site.free()


async def test_an_engine_without_work_is_drained_at_once(site: Site) -> None:
    site.add("one")
    await site.start()
    async with asyncio.timeout(PATIENCE):
        await drained(site)


async def test_an_analysis_outlives_the_api_and_an_api_names_the_engine(site: Site) -> None:
    gate = Gate()
    site.add("one", gate)
    api = site.beside()
    await api.start(engine=False)
    assert api.app is not None
    assert api.app[SWITCH].drain is None
    assert (await api.get("/cuckoo/status"))["processes"] == {"api": os.getpid()}
    await site.start()
    mine = {"api": os.getpid(), "engine": os.getpid()}
    assert (await api.get("/cuckoo/status"))["processes"] == mine
    task_id = await api.submit()
    await site.running("one")
    await api.stop()
    await api.start(engine=False)
    gate.open.set()
    assert (await api.until(task_id, "reported"))["errors"] == []
    await api.stop()
    await site.free()
