"""What happens in the server is told to whoever follows it, in this process and beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fakekit import PATIENCE, TOKEN, Site

from cuckoo_api.analysis import disk
from cuckoo_api.testing.fake import scripts

pytestmark = pytest.mark.slow


@asynccontextmanager
async def following(site: Site, last: int | None = None) -> AsyncIterator[aiohttp.StreamReader]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{site.url}/events") as response,
    ):
        assert await response.content.readline() == b":\n"
        yield response.content


async def told(stream: aiohttp.StreamReader, kind: str, count: int) -> list[dict[str, Any]]:
    """So many events of this kind."""
    found: list[dict[str, Any]] = []
    is_wanted = False
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            name, _, value = (await stream.readline()).decode().strip().partition(": ")
            if name == "event":
                is_wanted = value == kind
            elif name == "data" and is_wanted:
                found.append(json.loads(value))
    return found


async def test_a_pause_for_want_of_room_is_told_and_so_is_its_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1 << 20]
    monkeypatch.setattr(disk, "free_bytes", lambda _: free[0])
    site.configure("cuckoo", freespace=1 << 30)
    site.add("one")
    await site.start()
    async with following(site) as stream:
        task_id = await site.submit()
        [low] = await told(stream, "disk", 1)
        free[0] = 1 << 40
        assert (await site.get("/readyz"))["problems"] == []  # whoever asks ends the pause
        [over] = await told(stream, "disk", 1)
    assert (low["low"], low["free"], low["wanted"]) == (True, 1 << 20, 1 << 30)
    assert (over["low"], over["free"]) == (False, 1 << 40)
    assert over["time"] >= low["time"]
    await site.until(task_id, "reported")
    await site.free()


ANALYSIS = ["pending", "running", "completed", "reported"]


async def test_an_analysis_is_told_from_its_submission_to_its_report(site: Site) -> None:
    site.add("one")
    await site.start()
    async with following(site) as stream:
        task_id = await site.submit()
        assert [data["status"] for data in await told(stream, "task", 4)] == ANALYSIS
        assert await site.get(f"/tasks/report/{task_id}")  # it is there when it is told
    async with following(site, 0) as stream:
        machine = await told(stream, "machine", 5)
    held = [data["task_id"] for data in machine if data["locked"]]
    assert set(held) == {task_id}
    assert "running" in [data["status"] for data in machine]
    await site.free()


async def test_a_process_without_the_engine_tells_what_the_engine_does(site: Site) -> None:
    site.add("one")
    await site.start()
    beside = site.beside()
    await beside.start(engine=False)
    async with following(beside) as there, following(site) as here:
        await beside.submit()
        for stream in (there, here):
            assert [data["status"] for data in await told(stream, "task", 4)] == ANALYSIS
    await beside.stop()
    await site.free()


async def test_an_open_stream_does_not_hold_up_a_stop(site: Site) -> None:
    site.add("one", scripts.normal)
    await site.start()
    async with following(site) as stream:
        await site.stop()
        async with asyncio.timeout(PATIENCE):
            await stream.read()  # to its end, in good order
