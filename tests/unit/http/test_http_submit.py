"""Files and URLs go in: what makes a task, what is refused, and with which words."""

from __future__ import annotations

import hashlib

import pytest
from httpkit import HELLO, Site, machine, part

from cuckoo_api.store import Store

pytestmark = pytest.mark.slow

FILE = "/tasks/create/file"
URL = "/tasks/create/url"
ADDRESS = "http://example.com/"


async def test_a_file_becomes_a_task_and_a_sample_that_are_on_the_disk(site: Site) -> None:
    reply = await site.client.upload(b"hello")
    assert (reply.status, reply.json) == (200, {"task_id": 1})
    assert site.kept() == {f"binaries/{HELLO}"}
    assert len(site.wakes) == 1
    other = await Store.open(f"sqlite:///{site.settings.cwd / 'cuckoo.db'}")
    task = await other.tasks.get(1)
    await other.close()
    assert task is not None
    assert (task.category, task.target, task.status) == ("file", "h.txt", "pending")


async def test_every_field_arrives(site: Site) -> None:
    await site.configure(machine("cuckoo1", tags=["32_bit", "office"]))
    fields = {
        "package": "pdf",
        "timeout": "60",
        "priority": "2",
        "options": "procmemdump=yes,arguments=a b",
        "machine": "cuckoo1",
        "platform": "windows",
        "tags": "32_bit, office",
        "custom": "my é custom",
        "owner": "alice",
        "clock": "12-25-2016 23:59:59",
        "memory": "yes",
        "enforce_timeout": "1",
        "nosuch": "ignored",
    }
    expected = fields | {
        "timeout": 60,
        "priority": 2,
        "options": {"procmemdump": "yes", "arguments": "a b"},
        "tags": ["32_bit", "office"],
        "clock": "2016-12-25 23:59:59",
        "memory": True,
        "enforce_timeout": True,
    }
    del expected["nosuch"]
    assert (await site.client.upload(b"%PDF", **fields)).status == 200
    assert (await site.client.post(URL, fields | {"url": ADDRESS})).status == 200
    for task in [await site.task(1), await site.task(2)]:
        assert {name: task[name] for name in expected} == expected


WRONG = [
    ("memory", "garbage", "memory: expected one of 1, true, yes, on, 0, false, no, off; got"),
    ("enforce_timeout", "2", "enforce_timeout: expected one of"),
    ("timeout", "abc", "timeout: expected a whole number from 0"),
    ("timeout", "-5", "timeout: expected"),
    ("timeout", "0x10", "timeout: expected"),
    ("timeout", str(1 << 63), "timeout: expected"),
    ("priority", "high", "priority: expected a whole number from 1"),
    ("clock", "2012-12-12 12:12:12", "clock: expected month-day-year hour:minute:second"),
    ("options", "free", "options: expected key=value"),
    ("package", "../x", "package: expected"),
    ("owner", "a\0b", "owner: expected"),
]


async def test_a_wrong_value_is_named_and_nothing_is_kept(site: Site) -> None:
    for field, value, message in WRONG:
        for reply in [
            await site.client.upload(b"hello", **{field: value}),
            await site.client.post(URL, {"url": ADDRESS, field: value}),
        ]:
            assert reply.status == 400
            assert reply.message.startswith(message)
    assert await site.ids() == []
    assert site.kept() == set()
    assert site.wakes == []


async def test_words_for_true_and_false(site: Site) -> None:
    words = {
        "1": True,
        "TRUE": True,
        "on": True,
        "0": False,
        "False": False,
        "no": False,
        "": False,
    }
    for word, meant in words.items():
        task_id = (await site.client.post(URL, {"url": ADDRESS, "memory": word})).json["task_id"]
        assert (await site.task(task_id))["memory"] is meant


async def test_a_large_priority_is_taken(site: Site) -> None:
    assert (await site.client.post(URL, {"url": ADDRESS, "priority": "9"})).status == 200
    assert (await site.task(1))["priority"] == 9


async def test_a_machine_that_is_not_there(site: Site) -> None:
    anywhere = {"machine": "nope", "platform": "beos", "tags": "x"}
    assert (await site.client.upload(b"hello", **anywhere)).status == 200  # until there are any
    await site.configure(machine("one"), machine("two", "linux", tags=["office"]))
    for wanted, message in [
        ({"machine": "nope"}, "machine: there is no 'nope'; there is one, two"),
        ({"platform": "beos"}, "no machine serves 'beos'; there is one (windows); two (linux, off"),
        ({"platform": "windows", "tags": "office"}, "no machine serves 'windows, office'"),
    ]:
        for reply in [
            await site.client.upload(b"other", **wanted),
            await site.client.post(URL, {"url": ADDRESS, **wanted}),
        ]:
            assert reply.status == 400
            assert message in reply.message
    assert (await site.client.upload(b"hello", machine="two-label")).status == 200
    assert await site.ids() == [1, 2]
    assert site.kept() == {f"binaries/{HELLO}"}


async def test_several_files_are_a_task_each(site: Site) -> None:
    reply = await site.client.upload(b"a", b"b", b"a")
    assert reply.json == {"task_id": 1, "task_ids": [1, 2, 3]}
    shas = [(await site.task(n))["sample"]["sha256"] for n in (1, 2, 3)]
    assert shas == [hashlib.sha256(content).hexdigest() for content in (b"a", b"b", b"a")]
    assert site.kept() == {f"binaries/{sha}" for sha in shas}
    assert len(site.wakes) == 1


async def test_unique_refuses_a_known_file(site: Site) -> None:
    known = "This file has already been submitted"
    assert (await site.client.upload(b"hello", unique="1")).json == {"task_id": 1}
    reply = await site.client.upload(b"hello", unique="true")
    assert (reply.status, reply.message) == (400, known)
    assert (await site.client.upload(b"hello", unique="0")).json == {"task_id": 2}
    assert (await site.client.upload(b"hello", unique="maybe")).message.startswith("unique: exp")
    # with a new one in the same request, none of them is taken
    assert (await site.client.upload(b"new", b"hello", unique="1")).message == known
    assert (await site.client.upload(b"twice", b"twice", unique="1")).message == known
    assert await site.ids() == [1, 2]
    assert site.kept() == {f"binaries/{HELLO}"}
    assert len(site.wakes) == 2


NAMES = [
    ("été €.exe", "été €.exe"),
    ("../../etc/passwd", "passwd"),
    (r"C:\Users\x\evil.doc", "evil.doc"),
    ("..", "sample"),
    ("", "sample"),
    (r"say \"hi\".txt", 'say "hi".txt'),
    ("a%2fb%00.txt", "a%2fb%00.txt"),
    ("caf\udce9.exe", "caf\N{REPLACEMENT CHARACTER}.exe"),
    ("x" * 400, "x" * 255),
]


async def test_any_name_is_kept_as_far_as_it_is_one(site: Site) -> None:
    for name, target in NAMES:
        reply = await site.client.upload(b"hello", name=name)
        assert (await site.task(reply.json["task_id"]))["target"] == target
    assert site.kept() == {f"binaries/{HELLO}"}


async def test_an_extended_name_says_more_than_a_plain_one(site: Site) -> None:
    head = (
        "Content-Disposition: form-data; name=file; filename=x; filename*=UTF-8''a%20%E2%82%AC.js"
    )
    await site.client.post_form(FILE, f"{head}\r\n\r\nhello".encode())
    assert (await site.task(1))["target"] == "a €.js"


async def test_an_empty_file_is_one(site: Site) -> None:
    assert (await site.client.upload(b"", name="empty.bin")).json == {"task_id": 1}
    assert (await site.task(1))["sample"]["file_size"] == 0


async def test_without_a_file(site: Site) -> None:
    for reply in [
        await site.client.ask("POST", FILE),
        await site.client.post(FILE, {"file": "hello"}),
        await site.client.post_form(FILE, part("package", b"exe")),
        await site.client.post_form(FILE, part("file", b"no name")),
        await site.client.post_form(FILE, part("file", b"", filename="")),
        await site.client.post_form(FILE, part("files", b"x", filename="x")),
    ]:
        assert reply.status == 400
        assert reply.message.startswith("file: expected a part named 'file'")
    assert site.kept() == set()


async def test_a_url_becomes_a_task(site: Site) -> None:
    address = "http://example.com/?a=b&c=é"
    assert (await site.client.post(URL, {"url": f" {address}\n"})).json == {"task_id": 1}
    task = await site.task(1)
    assert (task["category"], task["target"]) == ("url", address)
    assert (task["sample_id"], task["sample"]) == (None, {})
    assert len(site.wakes) == 1


async def test_a_url_as_a_part_of_a_form_with_an_empty_file_name(site: Site) -> None:
    for n, filename in enumerate([None, "", "x"], 1):
        url = part("url", ADDRESS.encode(), filename=filename)
        assert (await site.client.post_form(URL, url, part("package", b"ie"))).json["task_id"] == n
        task = await site.task(n)
        assert (task["target"], task["package"]) == (ADDRESS, "ie")
    assert site.kept() == set()


async def test_no_usable_url(site: Site) -> None:
    assert (await site.client.ask("POST", URL)).message.startswith("url: expected")
    for url in ["", " ", "a\0b", "a\nb", "x" * 9000]:
        reply = await site.client.post(URL, {"url": url})
        assert reply.status == 400
        assert reply.message.startswith("url: expected")
    assert await site.ids() == []


async def test_a_callback_must_be_an_address_of_the_internet(site: Site) -> None:
    form = {"url": "http://example.com/", "callback": "http://169.254.169.254/latest"}
    reply = await site.client.post("/tasks/create/url", form)
    assert reply.status == 400
    assert reply.message.startswith("callback: 169.254.169.254 is not an address of the public")
    reply = await site.client.upload(b"x", callback="nowhere")
    assert reply.message.startswith("callback: expected an http:// or https:// address")
    assert (await site.ids(), site.kept()) == ([], set())

    task_id = (await site.client.upload(b"x", callback="https://soc.example/?key=k")).json[
        "task_id"
    ]
    assert "soc.example" not in str(await site.task(task_id))
