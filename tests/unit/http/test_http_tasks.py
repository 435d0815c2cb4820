"""Tasks as they stand: one, those of a sample, and lists of any length."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from httpkit import HELLO, NewSite, Site, get, machine

from cuckoo_api.analysis.service import AnalysisService
from cuckoo_api.http.tasks import LARGEST_BODY
from cuckoo_api.model.task import Guest, NewTask, Status, Task

pytestmark = pytest.mark.slow

DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def url(number: int = 0, **values: Any) -> NewTask:
    return NewTask(category="url", target=f"http://x/{number}", **values)


async def ids(site: Site, path: str) -> list[int]:
    return [task["id"] for task in (await site.client.get(path)).json["tasks"]]


async def submit_without_fuzzy_hash(site: Site) -> None:
    """As a keeper leaves it in a flood."""
    async with site.artefacts.receive(max_size=100) as upload:
        await upload.write(b"hello")
        sample = msgspec.structs.replace(await upload.finish(), ssdeep=None)
        await site.store.tasks.submit_files([(NewTask(category="file", target="h.txt"), sample)])


async def run(site: Site, task_id: int, *states: Status) -> None:
    for source, target in itertools.pairwise(states):
        assert await site.store.tasks.transition(task_id, source, target)


async def test_a_task_shows_all_its_fields(site: Site) -> None:
    await site.client.upload(b"hello")
    reply = await site.client.get("/tasks/view/1")
    assert list(reply.json) == ["task"]
    task = reply.json["task"]
    assert DATE.fullmatch(task.pop("added_on"))
    assert DATE.fullmatch(task.pop("clock"))
    sample = task.pop("sample")
    assert task == {
        "id": 1,
        "category": "file",
        "target": "h.txt",
        "machine": "",
        "package": "",
        "options": {},
        "timeout": 0,
        "priority": 1,
        "custom": "",
        "owner": "",
        "platform": "",
        "memory": False,
        "enforce_timeout": False,
        "tags": [],
        "status": "pending",
        "started_on": None,
        "completed_on": None,
        "duration": -1,
        "sample_id": 1,
        "submit_id": None,
        "route": None,
        "processing": None,
        "guest": {},
        "errors": [],
    }
    assert sample == {
        "id": 1,
        "md5": "5d41402abc4b2a76b9719d911017c592",
        "sha1": "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d",
        "sha256": HELLO,
        "sha512": "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca7"
        "2323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043",
        "crc32": "3610A686",
        "ssdeep": "3:iKn:p",
        "file_size": 5,
        "file_type": "ASCII text, with no line terminators",
    }


@pytest.mark.parametrize("path", ["/tasks/view/1", f"/files/view/sha256/{HELLO}"])
async def test_a_fuzzy_hash_that_was_left_for_later_is_made_when_somebody_looks(
    site: Site, path: str
) -> None:
    await submit_without_fuzzy_hash(site)
    asked = (await site.client.get(path)).json
    assert asked.get("task", asked)["sample"]["ssdeep"] == "3:iKn:p"
    [listed] = (await site.client.get("/tasks/list")).json["tasks"]
    assert listed["sample"]["ssdeep"] == "3:iKn:p", "it was noted"


async def test_where_the_file_is_gone_there_is_no_fuzzy_hash(site: Site) -> None:
    await submit_without_fuzzy_hash(site)
    site.artefacts.binary(HELLO).unlink()
    assert (await site.task(1))["sample"]["ssdeep"] is None


async def test_a_fuzzy_hash_that_was_left_for_later_comes_with_the_next_upload(site: Site) -> None:
    await submit_without_fuzzy_hash(site)
    await site.client.upload(b"hello")
    listed = (await site.client.get("/tasks/list")).json["tasks"]
    assert [task["sample"]["ssdeep"] for task in listed] == ["3:iKn:p"] * 2


async def test_a_task_that_is_done_shows_where_it_ran(site: Site) -> None:
    await site.store.tasks.submit([url()])
    [one] = await site.store.machines.sync([machine("one")])
    assert await site.store.tasks.claim(one)
    ran = Guest(
        name="one",
        label="one-label",
        manager="fake",
        started_on="2020-01-02 03:05:01",
        shutdown_on="2020-01-02 03:09:58",
        exit_address="203.0.113.1",
        status="stopped",
    )
    await site.store.tasks.set_guest(1, ran)
    await site.store.tasks.set_route(1, "none")
    await site.store.tasks.add_error(1, "it went wrong: é")
    await run(site, 1, Status.RUNNING, Status.COMPLETED, Status.REPORTED)
    task = await site.task(1)
    assert task["guest"] == {
        "name": "one",
        "label": "one-label",
        "manager": "fake",
        "started_on": "2020-01-02 03:05:01",
        "shutdown_on": "2020-01-02 03:09:58",
        "status": "stopped",
        "exit_address": "203.0.113.1",
    }
    assert (task["status"], task["machine"], task["route"]) == ("reported", "one", "none")
    assert task["errors"] == ["it went wrong: é"]
    assert DATE.fullmatch(task["started_on"])
    assert DATE.fullmatch(task["completed_on"])
    assert task["duration"] >= 0


async def test_a_task_that_is_not_there(site: Site) -> None:
    await site.store.tasks.submit([url()])
    for number in ["0", "2", "9999", str((1 << 63) - 1), str(1 << 63), "9" * 500]:
        reply = await site.client.get(f"/tasks/view/{number}")
        assert (reply.status, reply.message) == (404, "Task not found")
    for number in ["-1", "0x1", "1.0", "1e3", "%31x", "+1", "%20", "%D9%A1"]:
        assert (await site.client.get(f"/tasks/view/{number}")).status == 404
    assert (await site.client.get("/tasks/view/01")).json["task"]["id"] == 1


async def test_lists_begin_with_what_is_not_done_and_go_on_by_date(site: Site) -> None:
    assert await site.store.tasks.submit([url(n) for n in range(4)]) == [1, 2, 3, 4]
    for task_id in (3, 1):
        await run(site, task_id, Status.PENDING, Status.CANCELLED)
    assert await ids(site, "/tasks/list") == [2, 4, 1, 3]  # the same second, then by id
    assert await ids(site, "/tasks/list/3") == [2, 4, 1]
    assert await ids(site, "/tasks/list/2/1") == [4, 1]
    assert await ids(site, "/tasks/list/0") == []
    assert await ids(site, "/tasks/list/5/9999") == []
    assert await ids(site, f"/tasks/list/{(1 << 63) - 1}/{(1 << 63) - 1}") == []
    [first] = (await site.client.get("/tasks/list/1")).json["tasks"]
    assert first == await site.task(first["id"])
    for path in ["/tasks/list/abc", "/tasks/list/-1", f"/tasks/list/{1 << 63}", "/tasks/list/1/x"]:
        reply = await site.client.get(path)
        assert reply.status == 404
        assert reply.message


async def test_a_list_can_be_narrowed(site: Site) -> None:
    await site.store.tasks.submit(
        [
            url(1, owner="alice", tags=["a", "b"], machine="one"),
            url(2, owner="bob é", tags=["a"]),
            url(3, owner="alice"),
        ]
    )
    await site.client.upload(b"hello")
    await run(site, 3, Status.PENDING, Status.CANCELLED)
    for query, expected in [
        ("", [1, 2, 4, 3]),
        ("status=cancelled", [3]),
        ("status=pending&owner=alice", [1]),
        ("owner=bob%20%C3%A9", [2]),
        ("owner=", [1, 2, 4, 3]),
        ("owner=%ff", []),
        ("completed_after=1577934599", [3]),
        ("completed_after=4000000000", []),
        ("completed_after=253402300799", []),
        ("completed_after=", [1, 2, 4, 3]),
        ("sample=1", [4]),
        ("sample=9999", []),
        ("target=http://x/2", [2]),
        ("category=file", [4]),
        ("tags=a", [1, 2]),
        ("tags=b,a", [1]),
        ("machine=one", [1]),
        ("after_id=2", [4, 3]),
        ("nosuch=1", [1, 2, 4, 3]),
        ("owner=' OR 1=1 --", []),
    ]:
        assert await ids(site, f"/tasks/list?{query.replace(' ', '%20')}") == expected, query
    assert await ids(site, "/tasks/list/1/1?owner=alice") == [3]


async def test_a_filter_that_does_not_parse_is_named(site: Site) -> None:
    for query, message in [
        ("status=nosuch", "status: expected one of pending, running, completed, reported"),
        ("completed_after=abc", "completed_after: expected a whole number from 0"),
        ("completed_after=99999999999999999", "completed_after: expected"),
        ("completed_after=-1", "completed_after: expected"),
        ("sample=x", "sample: expected a whole number"),
        (f"after_id={1 << 63}", "after_id: expected"),
        ("owner=%00", "owner: expected at most"),
        ("target=" + "x" * 5000, "target: expected at most"),
    ]:
        reply = await site.client.get(f"/tasks/list?{query}")
        assert reply.status == 400
        assert reply.message.startswith(message)


async def test_the_tasks_of_a_sample(site: Site) -> None:
    await site.client.upload(b"other", b"hello", b"other")
    assert await ids(site, "/tasks/sample/1") == [1, 3]
    assert await ids(site, "/tasks/sample/2") == [2]
    assert await ids(site, "/tasks/sample/9999") == []
    for number in [str(1 << 63), "9" * 30]:
        assert (await site.client.get(f"/tasks/sample/{number}")).message == "File not found"


async def test_a_list_without_a_limit_is_whole_and_streamed(site: Site) -> None:
    number = LARGEST_BODY + 200
    await site.store.tasks.submit([url(n) for n in range(number)])
    reply = await site.client.get("/tasks/list")
    assert "Content-Length" not in reply.headers
    assert [task["id"] for task in reply.json["tasks"]] == list(range(1, number + 1))
    assert (await site.client.get(f"/tasks/list/{number}")).json == reply.json
    assert len(await ids(site, f"/tasks/list/{LARGEST_BODY}")) == LARGEST_BODY
    assert (await site.client.ask("HEAD", "/tasks/list")).body == b""


async def test_a_list_that_fails_midway_is_cut_off_and_never_looks_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def each(*_: object) -> AsyncIterator[Task]:
        for number in range(1, 500):
            yield Task(id=number, category="url", target="x" * 100, added_on="2020-01-01 00:00:00")
        raise OSError("the disk is gone")

    monkeypatch.setattr(AnalysisService, "tasks", each)
    reader, writer = await site.client.connect()
    writer.write(get("/tasks/list"))
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert not answer.endswith(b"0\r\n\r\n")  # the last chunk


async def test_failed_tasks_can_be_shown_as_clients_of_old_know_them(new_site: NewSite) -> None:
    site = await new_site(legacy_statuses=True)
    await site.store.tasks.submit([url(n) for n in range(3)])
    await run(site, 1, Status.PENDING, Status.RUNNING, Status.FAILED_ANALYSIS)
    await run(site, 2, Status.PENDING, Status.RUNNING, Status.COMPLETED, Status.FAILED_PROCESSING)
    for task_id, shown in [(1, "reported"), (2, "reported"), (3, "pending")]:
        assert (await site.task(task_id))["status"] == shown
    for path in ["/tasks/list", "/tasks/list/9"]:
        listed = json.loads((await site.client.get(path)).body)["tasks"]
        assert sorted(task["status"] for task in listed) == ["pending", "reported", "reported"]
