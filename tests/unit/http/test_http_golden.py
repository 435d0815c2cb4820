"""The 2.0.7 server's answers to a fixed scenario, and ours to the same requests.

``golden/records.jsonl`` holds what the original answered. Status, content type and every key and
value of its JSON are compared; what differs on purpose is in the tables below, with its reason, and
the same tables stand in ``docs/parity.md``.
"""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from httpkit import FORM, NewSite, Reply, Site, form, machine, part

from cuckoo_api.http.keys import SWITCH
from cuckoo_api.model.task import NewTask

pytestmark = pytest.mark.slow

RECORDS = Path(__file__).with_name("golden") / "records.jsonl"
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
RFC_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")

REFUSED = "what does not parse is refused, and the text says what is expected"
JSON_ERROR = "errors are JSON"
NO_CRASH = "what the client did wrong is no fault of the server"
EVERYWHERE = "every route is there under /v1"

DIFFERENT: dict[int, tuple[int, str]] = {
    11: (400, REFUSED),
    13: (400, REFUSED),
    18: (400, REFUSED),
    20: (400, REFUSED),
    21: (400, REFUSED),
    22: (400, REFUSED),
    26: (400, REFUSED),
    30: (200, "a file without a name is called sample"),
    52: (400, REFUSED),
    53: (400, REFUSED),
    54: (400, REFUSED),
    55: (400, REFUSED),
    61: (400, REFUSED),
    217: (400, NO_CRASH),
    220: (200, "a trailing slash is accepted"),
    230: (404, NO_CRASH),
    274: (404, NO_CRASH),
    280: (200, EVERYWHERE),
    296: (200, "hashes are found in any case"),
    305: (200, "samples are kept until the last task that has them is deleted"),
    416: (200, EVERYWHERE),
    506: (200, "blanks at the end of a header belong to nobody"),
}
"""Record -> our status, and why it is another one."""

OTHER_TEXT: dict[int, str] = {
    64: "VirusTotal is not asked without a key, and the sentence says so",
    65: "the sentence says what is expected",
    503: "the text says where the token is found",
    505: "the text says where the token is found",
    508: "the text says where the token is found",
    509: "the text says where the token is found",
    511: "the text says where the token is found",
}
"""Record -> why its status is the same and its text is not."""

OTHER_TASKS: dict[int, str] = {
    58: "files of unknown type are tasks too",
    59: "files of unknown type are tasks too",
    60: "files of unknown type are tasks too",
    62: "an archive's members are tasks at once, and not some time later",
    71: "files of unknown type are tasks too",
}
"""Record of a submission -> why it makes other tasks."""

UNLIKE: dict[int, str] = {
    239: "its submission is refused here",
    241: "its submission is refused here",
    247: "its submission is refused here",
    248: "a package is chosen in the guest, by the file's type",
    250: "the record of its submission is not kept",
    251: "the record of its submission is not kept",
}
"""Record -> why it is another task's, so that only the status is compared."""

KEYS_ONLY: dict[int, str] = {
    202: "a page of a list of which some tasks are not there",
    203: "a page of a list of which some tasks are not there",
    208: "a page of a list of which some tasks are not there",
    218: "a list of which some tasks are not there",
    221: "a list of which some tasks are not there",
    223: "a list of which some tasks are not there",
    295: "a list of which some tasks are not there",
    298: "a list of which some tasks are not there",
    304: "a list of which some tasks are not there",
    407: "a list of which some tasks are not there",
    424: "a list of which some tasks are not there",
}
"""Record -> why its keys are compared and its values are not."""

VARIES = re.compile(
    r"(?:^|\.)(added_on|clock|locked_changed_on|sample_id|submit_id|ssdeep|sample\.id"
    r"|cpu_count|cpuload|diskspace\..*|hostname|status(?:-after)?\.memory|memavail|memtotal|version)$"
)
"""Values that are the machine's or the moment's own."""

LEFT_OUT: dict[str, str] = {
    "guest.id": "the number of a row that nobody can ask for",
    "guest.task_id": "it stands in the task that holds the guest",
}
"""The end of a key's path -> why it is not there."""

NOTHING = {"machine", "package", "platform"}
"""Keys that say nothing as null here and as an empty text there, in the original now and then."""


def records(first: int, last: int) -> Iterator[dict[str, Any]]:
    with RECORDS.open(encoding="utf-8") as file:
        for line in file:
            record: dict[str, Any] = json.loads(line)
            if first <= record["n"] <= last:
                yield record


async def ask(site: Site, record: dict[str, Any], path: str) -> Reply:
    headers = {"Authorization": record["authorization"]} if "authorization" in record else {}
    how: dict[str, Any] = {"headers": headers}
    if record.get("urlencoded"):
        how["data"] = dict(record["form"])
    elif record["method"] in ("POST", "PUT"):
        parts = [part(key, value.encode()) for key, value in record.get("form") or []]
        parts += [
            part(key, content.encode("latin-1"), filename=name)
            for key, name, content in record.get("files") or []
        ]
        how["data"] = io.BytesIO(form(*parts))
        headers["Content-Type"] = FORM
    return await site.client.ask(record["method"], path, **how)


def compare(record: dict[str, Any], answer: Reply) -> None:
    """Status, content type and JSON are the original's, or differ as it is written above."""
    number = record["n"]
    status, _ = DIFFERENT.get(number, (record["status"], ""))
    assert answer.status == status, (record["name"], answer.body[:300])
    kind, original = answer.headers.get("Content-Type", ""), record["type"].split(";")[0]
    if status >= 400:
        assert answer.message
    if status != record["status"] or (original == "text/html" and not answer.status < 300):
        return
    if answer.body:
        assert kind.split(";")[0] == original, record["name"]
    if original != "application/json" or number in {*OTHER_TEXT, *UNLIKE}:
        return
    keys_only = number in {*KEYS_ONLY, *OTHER_TASKS}
    same(record["name"], json.loads(record["text"]), answer.json, keys_only=keys_only)


def same(where: str, theirs: Any, ours: Any, *, keys_only: bool) -> None:
    """Ours has every key of theirs, of the same type and with the same value."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        missing = {f"{where}.{key}" for key in set(theirs) - set(ours)}
        assert all(key.endswith(tuple(LEFT_OUT)) for key in missing), missing
        for key in set(theirs) & set(ours):
            one, other = (v or "" if key in NOTHING else v for v in (theirs[key], ours[key]))
            same(f"{where}.{key}", one, other, keys_only=keys_only)
    elif isinstance(theirs, str) and (DATE.fullmatch(theirs) or RFC_DATE.fullmatch(theirs)):
        assert DATE.fullmatch(ours), (where, ours)
    elif keys_only or VARIES.search(where):
        assert type(theirs) is type(ours) or None in (theirs, ours), (where, theirs, ours)
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        assert len(theirs) == len(ours), (where, len(theirs), len(ours))
        for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
            same(f"{where}[{number}]", their, our, keys_only=False)
    elif where.endswith(".target"):
        # the original shows where it put the file; clients take the base name
        assert ours == theirs.rpartition("/tmp")[2].rpartition("/")[2] or ours == theirs, where
    else:
        assert (type(theirs), theirs) == (type(ours), ours), where


class Scenario:
    """The original's scenario on our server; ids stay the original's."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.database = site.settings.cwd / "cuckoo.db"
        self.last = 0

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Change rows by hand, as it was done there; the rows of the last statement."""
        rows: list[tuple[Any, ...]] = []
        with closing(sqlite3.connect(self.database)) as connection, connection:
            for statement in statements:
                rows = connection.execute(statement).fetchall()
        return rows

    async def keep_ids(self, last: int) -> None:
        """Let the next task have the id after ``last``: the original made other tasks than we."""
        self.last = last
        highest = self.sql("SELECT max(id) FROM tasks")[0][0] or 0
        if highest == last:
            return
        self.sql(
            f"DELETE FROM tasks WHERE id > {last}",
            f"UPDATE sqlite_sequence SET seq = {min(last, highest)} WHERE name = 'tasks'",
        )
        missing = [NewTask(category="url", target="-") for _ in range(highest, last)]
        if missing:
            await self.site.store.tasks.submit(missing)

    async def play(self, first: int, last: int) -> None:
        """Ask and compare; all that differs is said at once."""
        faults: list[str] = []
        for record in records(first, last):
            answer = await ask(self.site, record, record["path"])
            try:
                compare(record, answer)
            except AssertionError as fault:
                faults.append(f"{record['n']} {fault}")
            if record["method"] == "POST":
                made = json.loads(record["text"]) if record["status"] == 200 else {}
                ids = [self.last, made.get("task_id") or 0, *made.get("task_ids", ())]
                await self.keep_ids(max(ids))
        assert not faults, "\n".join(faults)

    async def arrange(self) -> None:
        """What was done by hand between the submissions and the reads."""
        site = self.site
        one = machine(
            "cuckoo1",
            label="win7x64",
            ip="192.168.56.101",
            options=["opt1,opt2"],
            tags=["32_bit", "office"],
            interface="vboxnet0",
            snapshot="clean",
        )
        two = machine("cuckoo2", "linux", label="ubuntu", ip="192.168.56.102")
        await site.configure(one, two)
        guest = {
            "name": "cuckoo1",
            "label": "win7x64",
            "manager": "VirtualBox",
            "started_on": "2020-01-02 03:05:01",
            "shutdown_on": "2020-01-02 03:09:58",
            "status": "stopped",
        }
        errors = ["The analysis hit the critical timeout, terminating.", "second error é"]
        self.sql(
            "UPDATE machines SET locked = 1, locked_changed_on = '2026-11-24 04:53:18'"
            " WHERE name = 'cuckoo2'",
            "UPDATE tasks SET status = 'reported', machine = 'cuckoo1',"
            " added_on = '2020-01-02 03:04:05',"
            f" clock = '2020-01-02 03:04:05', started_on = '2020-01-02 03:05:00',"
            f" completed_on = '2020-01-02 03:09:59', duration = 299,"
            f" guest = '{json.dumps(guest)}', errors = '{json.dumps(errors)}' WHERE id = 1",
            "UPDATE tasks SET status = 'running', started_on = '2020-01-03 00:00:00' WHERE id = 2",
            "UPDATE tasks SET status = 'completed', completed_on = '2020-01-04 00:00:00'"
            " WHERE id = 3",
            "UPDATE tasks SET status = 'failed_analysis', completed_on = '2020-01-05 00:00:00'"
            " WHERE id = 4",
            "UPDATE tasks SET status = 'reported', completed_on = '2020-01-06 00:00:00'"
            " WHERE id = 7",
        )
        [report] = [r["text"] for r in records(253, 253)]
        site.put("reports/report.json", report.encode())
        site.put("reports/report.html", "<html><body>réport</body></html>\n".encode())
        for name, content in {
            "shots/0001.jpg": b"\xff\xd8\xff\xe0jpegdata01",
            "shots/0002.jpg": b"\xff\xd8\xff\xe0jpegdata02",
            "memory/1234-1.dmp": b"DUMP1234",
            "memory/2040-1.dmp": b"DUMP2040",
            "memory.dmp": b"FULL",
            "dump.pcap": bytes(24),
            "files/dead_a.txt": b"dropped",
            "package_files/p.bin": b"p",
            "logs/1234.bson": b"bson",
            "task.json": b"{}",
        }.items():
            site.put(name, content)
        site.put("task.json", b"{}", task_id=2)
        for name in ("shots", "memory"):
            (site.artefacts.analysis(3).path / name).mkdir(parents=True)
        (site.settings.storage / "binaries" / ("e" * 64)).write_bytes(b"planted")


async def test_the_original_s_scenario(new_site: NewSite) -> None:
    scenario = Scenario(await new_site())
    await scenario.play(1, 71)
    await scenario.keep_ids(55)
    await scenario.arrange()
    await scenario.play(201, 399)
    await scenario.play(401, 406)
    # the original's record of this one is not kept; the next two are
    assert (await scenario.site.client.get("/tasks/rereport/7")).json == {"success": True}
    await scenario.play(407, 499)


async def test_the_original_s_authentication(new_site: NewSite) -> None:
    await Scenario(await new_site(token="sekret")).play(501, 599)


async def test_the_original_s_end(new_site: NewSite) -> None:
    site = await new_site(debug=True)
    stops: list[None] = []
    site.app[SWITCH].stop = lambda: stops.append(None)
    await Scenario(site).play(601, 699)
    assert stops == [None]


def test_every_difference_is_about_a_record() -> None:
    known = {record["n"] for record in records(0, 999)}
    for table in (DIFFERENT, OTHER_TEXT, OTHER_TASKS, UNLIKE, KEYS_ONLY):
        assert set(table) <= known


def rendered() -> str:
    """The tables as ``docs/parity.md`` shows them."""
    asked = {r["n"]: f"`{r['method']} {r['path']}`, {r['name']}" for r in records(0, 999)}
    first = {r["n"]: r["status"] for r in records(0, 999)}
    lines = ["| Request | 2.0.7 | Here | Why |", "|---|---|---|---|"]
    for number, (status, reason) in DIFFERENT.items():
        lines.append(f"| {asked[number]} | {first[number]} | {status} | {reason} |")
    lines += ["", "| Request | What differs |", "|---|---|"]
    for table in (OTHER_TEXT, OTHER_TASKS, UNLIKE):
        lines += [f"| {asked[number]} | {reason} |" for number, reason in table.items()]
    lines += ["", "| Key | Why it is not there |", "|---|---|"]
    lines += [f"| `{key}` | {reason} |" for key, reason in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def test_the_differences_stand_in_the_docs() -> None:
    page = Path(__file__).parents[3] / "docs" / "parity.md"
    assert rendered() in page.read_text(encoding="utf-8"), rendered()
