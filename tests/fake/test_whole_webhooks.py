"""Who submits a task with a callback is told when it has ended, and finds what is promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from fakekit import PATIENCE, Site

from cuckoo_api.testing.fake import scripts

pytestmark = pytest.mark.slow

Told = asyncio.Queue[Any]


@asynccontextmanager
async def receiver(look: Callable[[Any], Awaitable[Any]]) -> AsyncIterator[tuple[str, Told]]:
    """The address of one, and what ``look`` found when it was told."""
    told: Told = asyncio.Queue()

    async def take(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.json()
        told.put_nowait((body["status"], await look(body["task"])))
        return web.Response()

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/", told
    finally:
        await runner.cleanup()


async def test_the_report_is_there_when_its_end_is_told(site: Site) -> None:
    async def look(task: Any) -> Any:
        return (await site.get(f"/tasks/report/{task['id']}"))["info"]["id"]

    site.configure("webhooks", allow_private=True)
    site.add("one")
    await site.start()
    async with receiver(look) as (url, told), asyncio.timeout(PATIENCE):
        task_id = await site.submit(callback=url)
        assert await told.get() == ("reported", task_id)
    await site.free()


async def test_a_running_task_that_is_cancelled_is_told_with_its_report(site: Site) -> None:
    async def look(task: Any) -> Any:
        return (await site.get(f"/tasks/report/{task['id']}"))["info"]["id"]

    site.add("one", scripts.hangs)
    async with receiver(look) as (url, told), asyncio.timeout(PATIENCE):
        site.configure("webhooks", allow_private=True, urls=(url,))
        await site.start()
        task_id = await site.submit(timeout=60)
        await site.running("one")
        await site.post(f"/tasks/cancel/{task_id}")
        assert await told.get() == ("cancelled", task_id)
    await site.free()


async def test_a_task_that_no_machine_could_run_is_told_too(site: Site) -> None:
    async def look(task: Any) -> Any:
        return task["errors"]

    site.configure("webhooks", allow_private=True)
    site.configure("cuckoo", max_attempts=1)
    site.configure("timeouts", agent=0.2)
    site.add("one", silent=True)
    await site.start()
    async with receiver(look) as (url, told), asyncio.timeout(PATIENCE):
        await site.submit(callback=url)
        status, errors = await told.get()
    assert status == "failed_analysis"
    assert errors
    await site.free()
