"""Clients of Cuckoo's API from the package index, unchanged, against the whole server."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from CuckooAPI import CuckooAPI
from fakekit import SAMPLE, TOKEN, Site
from peekaboo.toolbox.cuckoo import Cuckoo, CuckooReport, CuckooSubmitFailedException

T = TypeVar("T")


async def call(function: Callable[..., T], *arguments: Any) -> T:
    """These clients block: in a thread."""
    return await asyncio.to_thread(function, *arguments)


# -- cuckoo-api of keithjjones ------------------------------------------------------------------


async def test_cuckoo_api(site: Site, tmp_path: Path) -> None:
    site.add("cuckoo1")
    site.configure("cuckoo", api_token="")  # it knows no authentication
    await site.start()
    host, _, port = site.url.removeprefix("http://").partition(":")
    client = CuckooAPI(host, int(port))

    status = await call(client.getcuckoostatus)
    assert status["machines"] == {"total": 1, "available": 1}
    [machine] = (await call(client.listmachines))["machines"]
    assert (await call(client.viewmachine, "cuckoo1"))["machine"] == machine

    sample = tmp_path / "sample.sh"
    sample.write_bytes(SAMPLE)
    task_id = (await call(client.submitfile, str(sample), {"priority": "2", "tags": ""}))["task_id"]
    await site.until(task_id, "reported")
    url_id = (await call(client.submiturl, "http://example.com/"))["task_id"]
    await site.until(url_id, "reported")
    assert (await call(client.taskview, url_id))["task"]["target"] == "http://example.com/"

    listed = (await call(client.taskslist))["tasks"]
    assert [task["id"] for task in listed] == [task_id, url_id]
    assert len((await call(client.taskslist, 1, 1))["tasks"]) == 1
    task = (await call(client.taskview, task_id))["task"]
    assert (task["priority"], task["target"]) == (2, "sample.sh")
    report = await call(client.taskreport, task_id)
    assert report["target"]["file"]["name"] == "sample.sh"

    await call(client.taskscreenshots, task_id, str(tmp_path / "shots"))
    assert zipfile.is_zipfile(tmp_path / "shots.zip")
    sha256 = task["sample"]["sha256"]
    found = (await call(client.fileview, sha256, "sha256"))["sample"]
    assert found["tasks"] == [task_id]
    assert (await call(client.taskdelete, task_id)) == {"status": "OK"}
    assert (await call(client.taskview, task_id)) == {"message": "Task not found"}


# -- Peekaboo -----------------------------------------------------------------------------------


class Sample:
    """What Peekaboo knows of an attachment, as far as its Cuckoo module asks."""

    id = 1
    sha256sum = "0" * 64
    file_extension = "sh"
    filename = "invoice.sh"
    content = SAMPLE

    def __init__(self) -> None:
        self.report: CuckooReport | None = None
        self.failed = False

    def register_cuckoo_report(self, report: CuckooReport) -> None:
        self.report = report

    def mark_cuckoo_failure(self) -> None:
        self.failed = True


class Queue:
    """Where Peekaboo puts a sample again once its report is there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.back: asyncio.Queue[Sample] = asyncio.Queue()

    def submit(self, sample: Sample, *_: object, **__: object) -> None:
        self._loop.call_soon_threadsafe(self.back.put_nowait, sample)


async def test_peekaboo(site: Site) -> None:
    site.add("cuckoo1")
    await site.start()
    queue, sample = Queue(), Sample()
    client = Cuckoo(queue, site.url, TOKEN, poll_interval=0.05, retries=0)
    task_id = await call(client.submit, sample)
    assert (await site.task(task_id))["target"] == "invoice.sh"
    client.start_tracker()
    try:
        async with asyncio.timeout(10):
            assert await queue.back.get() is sample
    finally:
        client.shut_down()
        await call(client.close_down)
    assert sample.report is not None
    assert not sample.failed
    report = await site.get(f"/tasks/report/{task_id}")
    assert sample.report.score == report["info"]["score"]
    assert sample.report.errors == report["debug"]["errors"]
    assert sample.report.signature_descriptions == [s["description"] for s in report["signatures"]]


async def test_peekaboo_with_a_wrong_token(site: Site) -> None:
    await site.start()
    client = Cuckoo(Queue(), site.url, "wrong", retries=0)
    with pytest.raises(CuckooSubmitFailedException):
        await call(client.submit, Sample())
