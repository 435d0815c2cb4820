"""kill -9 at any step of a server's work: the next start finishes it."""

from __future__ import annotations

import asyncio

import pytest
from fakekit import Site
from mortal import IN_THE_GUEST, one_life

pytestmark = pytest.mark.slow

STEPS = (7, 11, 15, 25, 27, 28)
"""After a claim, in the middle of a recovery, with the guest started, with it stopped, with the
machine given back, and in the making of a report."""


async def test_what_a_killed_server_left_is_finished_by_the_next(site: Site) -> None:
    site.add("one")
    answered: list[int] = []
    for step in (*STEPS, IN_THE_GUEST):
        answered += await asyncio.to_thread(one_life, site.settings.cwd, step)
    assert answered

    async with site.store() as store:
        assert (await store.machines.get("one")).locked
    await site.world.start_by_hand("one")  # a real machine outlives its server
    await site.start()
    tasks = (await site.get("/tasks/list"))["tasks"]
    assert {task["id"] for task in tasks} >= set(answered)
    for task in tasks:
        done = await site.until(task["id"], "reported")
        assert done["errors"] == []
        report = await site.get(f"/tasks/report/{task['id']}")
        assert report["info"]["id"] == task["id"]
        reports = site.folder(task["id"]) / "reports"
        assert [path.name for path in reports.iterdir()] == ["report.json"]
    await site.free()
