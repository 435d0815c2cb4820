"""``create/submit``: files, archives and lines of text at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from httpkit import HELLO, NewSite, Site, machine, part

from archivekit import EXE, aes_zipped, written, zipped
from cuckoo_api.settings import ArchivesSection, VirusTotalSection
from virustotalkit import KEY, StandIn

pytestmark = pytest.mark.slow

SUBMIT = "/tasks/create/submit"
NOTHING = "No files or strings have been given!"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def submit(site: Site, files: dict[str, bytes], **fields: str) -> dict[str, Any]:
    """Submit; the answer, which is of one form whatever becomes of it."""
    parts = [part(name, value.encode()) for name, value in fields.items()]
    parts += [part("files", content, filename=name) for name, content in files.items()]
    reply = await site.client.post_form(SUBMIT, *parts)
    assert reply.status == 200
    answer: dict[str, Any] = reply.json
    assert list(answer) == ["submit_id", "task_ids", "errors"]
    return answer


# -- files --------------------------------------------------------------------------------------


async def test_file_and_files_become_tasks_of_one_submission(site: Site) -> None:
    reply = await site.client.post_form(
        SUBMIT,
        part("file", b"MZ one", filename="a.exe"),
        part("files", b"hello", filename="C:\\b.doc"),
        part("files", b"MZ two", filename="c"),
    )
    assert reply.json == {"submit_id": 1, "task_ids": [1, 2, 3], "errors": []}
    tasks = [await site.task(task_id) for task_id in (1, 2, 3)]
    assert [task["target"] for task in tasks] == ["a.exe", "b.doc", "c"]
    assert {task["category"] for task in tasks} == {"file"}
    assert {task["submit_id"] for task in tasks} == {1}
    assert tasks[1]["sample"]["sha256"] == HELLO
    assert len(site.wakes) == 1


async def test_every_submission_has_a_number_of_its_own(site: Site) -> None:
    for number in (1, 2, 3):
        answer = await submit(site, {"a.exe": EXE} if number != 2 else {}, strings="not a url")
        assert answer["submit_id"] == number
    assert await site.ids() == [1, 2]


async def test_every_field_holds_for_every_task(site: Site) -> None:
    await site.configure(machine("m", tags=["office"]))
    fields = {
        "package": "exe",
        "machine": "m",
        "platform": "windows",
        "timeout": "77",
        "priority": "2",
        "options": "free=yes,human=0",
        "tags": "office",
        "custom": "cü",
        "owner": "carol",
        "memory": "yes",
        "enforce_timeout": "1",
        "clock": "12-31-2026 23:59:59",
    }
    answer = await submit(
        site, {"a.exe": EXE, "b.zip": zipped({"c.exe": EXE})}, strings="http://x/", **fields
    )
    assert answer["task_ids"] == [1, 2, 3]
    for task_id in (1, 2, 3):
        task = await site.task(task_id)
        assert {name: task[name] for name in fields if name != "options"} == {
            "package": "exe",
            "machine": "m",
            "platform": "windows",
            "timeout": 77,
            "priority": 2,
            "tags": ["office"],
            "custom": "cü",
            "owner": "carol",
            "memory": True,
            "enforce_timeout": True,
            "clock": "2026-12-31 23:59:59",
        }
        filename = {"filename": "c.exe"} if task_id == 2 else {}
        assert task["options"] == {"procmemdump": "yes", "free": "yes", "human": "0"} | filename


async def test_the_end_of_every_task_is_told_to_the_callback(site: Site) -> None:
    await submit(site, {"a.exe": EXE}, strings="http://x/", callback="https://mine.example/")
    for task_id in (1, 2):
        await site.store.tasks.cancel(task_id)
    told = [(delivery.task_id, delivery.url) for delivery in await site.store.deliveries.first()]
    assert told == [(1, "https://mine.example/"), (2, "https://mine.example/")]


async def test_a_client_s_own_procmemdump_is_not_overruled(site: Site) -> None:
    await submit(site, {"a.exe": EXE}, options="procmemdump=no")
    assert (await site.task(1))["options"] == {"procmemdump": "no"}


async def test_nothing_given(site: Site) -> None:
    for fields in ({}, {"strings": ""}, {"strings": " \r\n\t\n"}, {"timeout": "x"}):
        reply = await site.client.post(SUBMIT, fields)
        assert (reply.status, reply.message) == (500, NOTHING)
    reply = await site.client.post_form(SUBMIT, part("other", b"MZ", filename="a.exe"))
    assert (reply.status, reply.message) == (500, NOTHING)


@pytest.mark.parametrize(
    ("field", "value"), [("timeout", "abc"), ("memory", "maybe"), ("options", "x"), ("clock", "x")]
)
async def test_a_field_that_does_not_parse_refuses_all(site: Site, field: str, value: str) -> None:
    reply = await site.client.post_form(
        SUBMIT, part(field, value.encode()), part("file", b"MZ", filename="a.exe")
    )
    assert reply.status == 400
    assert reply.message.startswith(f"{field}: expected")
    assert site.kept() == set()
    assert site.wakes == []


# -- archives -----------------------------------------------------------------------------------


async def test_an_archive_becomes_a_task_for_each_member_worth_running(site: Site) -> None:
    members = {"dir/in1.exe": EXE, "in2.txt": b"text\n", "in3.js": b"alert(1)\n", "empty": b""}
    answer = await submit(site, {"bundle.zip": zipped(members)})
    assert answer == {"submit_id": 1, "task_ids": [1, 2], "errors": []}
    for task_id, name in ((1, "dir/in1.exe"), (2, "in3.js")):
        task = await site.task(task_id)
        assert (task["category"], task["target"]) == ("archive", "bundle.zip")
        assert task["options"] == {"procmemdump": "yes", "filename": name}
        assert task["sample"]["sha256"] == sha256(members[name])
    assert site.kept() == {f"binaries/{sha256(members[n])}" for n in ("dir/in1.exe", "in3.js")}


async def test_one_that_cannot_be_taken_costs_the_others_nothing(new_site: NewSite) -> None:
    site = await new_site(archives=ArchivesSection(max_files=2))
    answer = await submit(
        site,
        {
            "locked.zip": aes_zipped({"b.exe": EXE + b"b"}, "unknown"),
            "texts.7z": written({"a.txt": b"text\n"}, "7zip"),
            "many.zip": zipped({f"{n}.exe": EXE + b"%d" % n for n in range(3)}),
            "plain.exe": EXE,
        },
        strings="not a url",
    )
    assert answer["task_ids"] == [1]
    assert (await site.task(1))["target"] == "plain.exe"
    assert answer["errors"] == [
        "locked.zip: 'b.exe' is encrypted, and no known password opens it",
        "texts.7z: nothing in the archive is worth running",
        "many.zip: it holds more than 2 files ([archives] max_files)",
        "'not a url' was neither a valid hash or url",
    ]
    assert site.kept() == {f"binaries/{sha256(EXE)}"}


async def test_a_document_that_is_packed_like_an_archive_is_a_file(site: Site) -> None:
    document = zipped({"word/document.xml": b"<x/>", "[Content_Types].xml": b"<Types/>"})
    assert (await submit(site, {"a.docx": document}))["errors"] == []
    task = await site.task(1)
    assert (task["category"], task["target"]) == ("file", "a.docx")
    assert site.kept() == {f"binaries/{sha256(document)}"}


async def test_what_was_there_before_stays_when_an_archive_holds_it_too(site: Site) -> None:
    await site.client.upload(b"text\n", name="a.txt")
    kept = site.kept()
    await submit(site, {"texts.zip": zipped({"a.txt": b"text\n"})})
    assert site.kept() == kept


async def test_nothing_stays_open(site: Site) -> None:
    await submit(site, {"warm.exe": EXE})
    before = sorted(os.listdir("/proc/self/fd"))
    await submit(site, {"b.zip": zipped({"b.exe": EXE, "b.txt": b"text\n"})}, strings="x.org")
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- lines --------------------------------------------------------------------------------------


async def test_lines_become_tasks_in_their_order(site: Site) -> None:
    reply = await site.client.post(
        SUBMIT, {"strings": "http://example.com/\r\n\nexample.org\nnot a url\nhttp://example.com/"}
    )
    assert reply.json == {
        "submit_id": 1,
        "task_ids": [1, 2, 3],
        "errors": ["'not a url' was neither a valid hash or url"],
    }
    tasks = [await site.task(task_id) for task_id in (1, 2, 3)]
    assert [(task["category"], task["target"], task["submit_id"]) for task in tasks] == [
        ("url", "http://example.com/", 1),
        ("url", "http://example.org", 1),
        ("url", "http://example.com/", 1),
    ]


async def test_a_hash_without_a_key_is_a_sentence(site: Site) -> None:
    digest = "d41d8cd98f00b204e9800998ecf8427e"
    reply = await site.client.post(SUBMIT, {"strings": digest.upper()})
    assert reply.json == {
        "submit_id": 1,
        "task_ids": [],
        "errors": [
            (
                f'Error retrieving file hash: Could not fetch hash "{digest}" from VirusTotal: '
                "no key is configured; set [virustotal] key in conf/cuckoo.conf"
            )
        ],
    }
    assert site.wakes == []


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with StandIn() as server:
        yield server


async def test_hashes_are_fetched_and_verified(new_site: NewSite, stand_in: StandIn) -> None:
    site = await new_site(virustotal=VirusTotalSection(key=KEY, url=stand_in.url))
    md5, sha1 = hashlib.md5(EXE).hexdigest(), hashlib.sha1(EXE).hexdigest()
    missing, other = "0" * 32, sha256(b"other")
    stand_in.files = {md5: EXE, sha1: EXE, sha256(EXE): EXE, other: b"not what was asked for"}
    answer = await submit(
        site, {}, strings="\n".join([md5, missing, sha1, other, sha256(EXE).upper(), md5])
    )
    assert answer["task_ids"] == [1, 2, 3, 4]
    tasks = [await site.task(task_id) for task_id in answer["task_ids"]]
    assert [task["target"] for task in tasks] == [md5, sha1, sha256(EXE), md5]
    assert {(task["category"], task["sample"]["sha256"]) for task in tasks} == {
        ("file", sha256(EXE))
    }
    error = 'Error retrieving file hash: Could not fetch hash "{}" from VirusTotal: {}'
    assert answer["errors"] == [
        error.format(missing, "it does not have that file"),
        error.format(other, "what it sent has another hash"),
    ]
    assert site.kept() == {f"binaries/{sha256(EXE)}"}


async def test_only_so_many_hashes_are_fetched(new_site: NewSite, stand_in: StandIn) -> None:
    site = await new_site(virustotal=VirusTotalSection(key=KEY, url=stand_in.url))
    answer = await submit(site, {}, strings="\n".join(f"{n:032x}" for n in range(52)))
    assert len(stand_in.seen) == 50
    assert len(answer["errors"]) == 52
    assert answer["errors"][-1].endswith("there are more than 50 hashes in this submission")


async def test_too_many_lines_are_refused(site: Site) -> None:
    reply = await site.client.post(SUBMIT, {"strings": "x.org\n" * 1001})
    assert (reply.status, reply.message) == (400, "strings: at most 1000 lines in one request")
