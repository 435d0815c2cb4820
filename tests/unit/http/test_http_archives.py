"""Archives of results, parts of a report, and memory dumps."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from httpkit import Site

from cuckoo_api.http import archives

pytestmark = pytest.mark.slow

REPORT = {
    "info": {"id": 1, "score": 4.2},
    "behavior": {"generic": [1], "apistats": {}, "processes": [2], "summary": {"file": ["é"]}},
    "procmemory": [1],
    "debug": {"log": []},
    "screenshots": [],
    "metadata": {},
    "zero": 0,
    "nul": None,
}

UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "": bz2.decompress,
    "?tar=bz2": bz2.decompress,
    "?tar=gz": gzip.decompress,
    "?tar=tar": bytes,
    "?tar=zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "?tar=zip": bz2.decompress,
}
"""By the query; what is not known is the default, as in Cuckoo 2."""


@pytest.fixture
async def analysed(site: Site) -> Site:
    """A server with one analysis: results, and what a guest would like to be archived."""
    answer = await site.client.upload(b"hello")
    assert answer.json == {"task_id": 1}
    site.put("task.json", b"{}")
    site.put("memory.dmp", b"all of it")
    site.put("memory/2040-1.dmp", b"DUMP2040")
    site.put("memory/1234-2.dmp", b"DUMP1234-2")
    site.put("memory/1234-1.dmp", b"DUMP1234-1")
    site.put("memory/notes.txt", b"no dump")
    site.put("files/aa_dropped", b"dropped")
    site.put("package_files/p.bin", b"p")
    site.put("reports/report.json", json.dumps(REPORT).encode())
    folder = site.artefacts.analysis(1).path
    (folder / "files" / "link").symlink_to("/etc/passwd")
    (folder / "shots").symlink_to("/etc")
    sample = (await site.task(1))["sample"]["sha256"]
    (folder / "binary").symlink_to(f"../../binaries/{sample}")
    return site


async def archive(site: Site, path: str, unpack: Callable[[bytes], bytes]) -> dict[str, bytes]:
    answer = await site.client.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/x-tar; charset=UTF-8"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(unpack(answer.body))) as tar:
        for member in tar:
            assert member.isfile() or member.isdir(), member
            file = tar.extractfile(member)
            found[member.name] = file.read() if file else b""
    return found


@pytest.mark.parametrize("query", UNPACK)
async def test_dropped_files_come_as_an_archive(analysed: Site, query: str) -> None:
    found = await archive(analysed, f"/tasks/report/1/dropped{query}", UNPACK[query])
    assert found == {"files": b"", "files/aa_dropped": b"dropped"}


async def test_all_is_everything_but_the_machine_s_memory(analysed: Site) -> None:
    found = await archive(analysed, "/v1/tasks/report/1/all", bz2.decompress)
    assert {name: content for name, content in found.items() if content} == {
        "binary": b"hello",
        "task.json": b"{}",
        "files/aa_dropped": b"dropped",
        "memory/1234-1.dmp": b"DUMP1234-1",
        "memory/1234-2.dmp": b"DUMP1234-2",
        "memory/2040-1.dmp": b"DUMP2040",
        "memory/notes.txt": b"no dump",
        "package_files/p.bin": b"p",
        "reports/report.json": json.dumps(REPORT).encode(),
    }
    assert await archive(analysed, "/tasks/report/1/package_files", bz2.decompress) == {
        "package_files": b"",
        "package_files/p.bin": b"p",
    }


async def test_a_link_in_place_of_the_sample_leads_nowhere_else(analysed: Site) -> None:
    link = analysed.artefacts.analysis(1).path / "binary"
    link.unlink()
    link.symlink_to("/etc/passwd")
    assert "binary" not in await archive(analysed, "/tasks/report/1/all", bz2.decompress)


async def test_archives_leave_no_temporary_file(
    analysed: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    await archive(analysed, "/tasks/report/1/all", bz2.decompress)
    await analysed.client.get("/healthz")  # on the same connection: the first has ended before
    assert list(spool.iterdir()) == []


async def test_an_archive_for_which_there_is_no_room_is_refused_before_it_is_begun(
    analysed: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
    answer = await analysed.client.get("/tasks/report/1/all")
    assert answer.status == 503
    assert answer.message.startswith("There is no room for the archive in the server's temporary")
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("what", ["all", "dropped", "package_files"])
async def test_an_archive_of_nothing_is_not_found(site: Site, what: str) -> None:
    answer = await site.client.get(f"/tasks/report/9999/{what}")
    assert (answer.status, answer.message) == (404, "Report not found")


async def test_an_unknown_format_is_refused(analysed: Site) -> None:
    answer = await analysed.client.get("/tasks/report/1/pdf")
    assert (answer.status, answer.message) == (400, "Invalid report format")


async def test_one_element_of_the_report(analysed: Site) -> None:
    for key in ("info", "behavior", "zero", "screenshots"):
        answer = await analysed.client.get(f"/tasks/report/1/json?elements={key}")
        assert answer.json == REPORT[key]
    for key in ("nul", "nope", ""):
        answer = await analysed.client.get(f"/tasks/report/1?elements={key}")
        assert (answer.status, answer.message) == (404, f"'{key}' not found")
    analysed.put("reports/report.html", b"<html></html>")
    answer = await analysed.client.get("/tasks/report/1/html?elements=info")
    assert answer.status == 404
    assert "not available in HTML" in answer.message


async def test_the_summary_is_the_report_without_its_bulk(analysed: Site) -> None:
    answer = await analysed.client.get("/tasks/summary/1")
    assert answer.json == {
        "info": REPORT["info"],
        "behavior": {"summary": {"file": ["é"]}},
        "zero": 0,
        "nul": None,
    }
    assert (await analysed.client.get("/tasks/summary/2")).message == "Report not found"
    analysed.put("reports/report.json", b'["no object"]')
    answer = await analysed.client.get("/tasks/summary/1")
    assert (answer.status, "rereport" in answer.message) == (500, True)


async def test_dumps_of_processes_and_of_the_machine(analysed: Site) -> None:
    answer = await analysed.client.get("/memory/list/1")
    assert answer.json == {"dump_files": ["1234-1", "1234-2", "2040-1"]}
    for name, content in {
        "1234-2": b"DUMP1234-2",
        "1234": b"DUMP1234-1",
        "2040": b"DUMP2040",
    }.items():
        answer = await analysed.client.get(f"/memory/get/1/{name}")
        assert answer.body == content
    answer = await analysed.client.get("/memory/get/1/2040-1", Range="bytes=4-")
    assert (answer.status, answer.body) == (206, b"2040")
    assert (await analysed.client.get("/memory/full/1")).body == b"all of it"
    for missing in (
        "/memory/get/1/9",
        "/memory/get/1/notes",
        "/memory/get/1/..%2fmemory",
        "/memory/list/2",
        "/memory/get/2/1",
        "/memory/full/2",
    ):
        answer = await analysed.client.get(missing)
        assert (answer.status, answer.message) == (404, "Memory dump not found"), missing
