"""Reports, screenshots, captures and samples: whole, in part, or unchanged since."""

from __future__ import annotations

import io
import logging
import os
import zipfile

import pytest
import structlog
from aiohttp import web_fileresponse
from httpkit import HELLO, Reply, Site, until
from structlog.testing import capture_logs

from cuckoo_api.http import artefacts

pytestmark = pytest.mark.slow

REPORT = '{"info": {"id": 1, "score": 4.2}, "uni": "é"}'.encode()
OCTETS = "application/octet-stream"
NOTHING = "There is nothing at this address; /openapi.json lists all"


@pytest.fixture
async def analysed(site: Site) -> Site:
    """A server with an analysis folder that somebody put there, and one sample."""
    site.put("reports/report.json", REPORT)
    site.put("reports/report.html", b"<p>hi</p>")
    site.put("shots/0001.jpg", b"jpeg one")
    site.put("shots/0002.jpg", b"jpeg two")
    site.put("shots/notes.txt", b"no picture")
    site.put("dump.pcap", b"\xd4\xc3\xb2\xa1" + bytes(20))
    site.put("task.json", b"{}", task_id=2)
    (site.artefacts.analysis(3).path / "shots").mkdir(parents=True)
    assert (await site.client.upload(b"hello")).status == 200
    return site


def check(reply: Reply, kind: str, body: bytes) -> None:
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, kind, body)
    assert int(reply.headers["Content-Length"]) == len(body)


async def test_a_report(analysed: Site) -> None:
    get = analysed.client.get
    for path in ["/tasks/report/1", "/tasks/report/1/json", "/v1/tasks/report/01/json/"]:
        check(await get(path), "application/json", REPORT)
    html = await get("/tasks/report/1/html")
    check(html, "text/html; charset=utf-8", b"<p>hi</p>")
    assert html.headers["Content-Security-Policy"] == "sandbox"


async def test_a_report_in_the_format_of_an_installed_package(
    analysed: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "own_formats", lambda: frozenset({"csv", "stix2"}))
    analysed.put("reports/report.csv", b"a,b")
    analysed.put("reports/report.stix2", b"<script>")
    check(await analysed.client.get("/tasks/report/1/csv"), "text/csv", b"a,b")
    reply = await analysed.client.get("/tasks/report/1/stix2")
    check(reply, OCTETS, b"<script>")
    assert reply.headers["Content-Security-Policy"] == "sandbox"
    reply = await analysed.client.get("/tasks/report/2/csv")
    assert (reply.status, reply.message) == (404, "Report not found")
    reply = await analysed.client.get("/tasks/report/1/misp")
    assert (reply.status, reply.message) == (400, "Invalid report format")


async def test_a_report_that_is_not_there(analysed: Site) -> None:
    for task_id in ["2", "9999", "0", str(1 << 63), "9" * 40]:
        for form in ["", "/json", "/html"]:
            reply = await analysed.client.get(f"/tasks/report/{task_id}{form}")
            assert (reply.status, reply.message) == (404, "Report not found")
    for form in ["pdf", "JSON", "..", "%2e%2e", "report.json"]:
        reply = await analysed.client.get(f"/tasks/report/1/{form}")
        assert reply.status in (400, 404)
        assert reply.message in ("Invalid report format", NOTHING)
    assert (await analysed.client.get("/tasks/report/1/pdf")).message == "Invalid report format"


async def test_screenshots(analysed: Site) -> None:
    get = analysed.client.get
    reply = await get("/tasks/screenshots/1")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/zip")
    assert int(reply.headers["Content-Length"]) == len(reply.body)
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "0001.jpg": b"jpeg one",
            "0002.jpg": b"jpeg two",
        }
    empty = await get("/tasks/screenshots/3")
    assert zipfile.ZipFile(io.BytesIO(empty.body)).namelist() == []
    for shot in ["1", "01", "0001", "00000001"]:
        check(await get(f"/tasks/screenshots/1/{shot}"), "image/jpeg", b"jpeg one")


async def test_screenshots_that_are_not_there(analysed: Site) -> None:
    for task_id in ["2", "9999", "0", str(1 << 63)]:
        for shot in ["", "/1"]:
            reply = await analysed.client.get(f"/tasks/screenshots/{task_id}{shot}")
            assert (reply.status, reply.message) == (404, "Task not found")
    for shot in ["9", "0", "1.jpg", "0001.jpg", "-1", "x", "9" * 30, "notes.txt", "%00", "%D9%A1"]:
        reply = await analysed.client.get(f"/tasks/screenshots/1/{shot}")
        assert (reply.status, reply.message) == (404, "Screenshot not found!")


async def test_a_capture(analysed: Site) -> None:
    check(await analysed.client.get("/pcap/get/1"), OCTETS, b"\xd4\xc3\xb2\xa1" + bytes(20))
    for task_id in ["2", "9999", "0", str(1 << 63)]:
        reply = await analysed.client.get(f"/pcap/get/{task_id}")
        assert (reply.status, reply.message) == (404, "File not found")


async def test_a_sample_is_found_by_its_hashes_and_its_id(analysed: Site) -> None:
    await analysed.client.upload(b"hello", b"other")
    md5, sha1 = "5d41402abc4b2a76b9719d911017c592", "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d"
    by_id = (await analysed.client.get("/files/view/id/1")).json
    assert list(by_id) == ["sample"]
    assert by_id["sample"] == (await analysed.task(1))["sample"] | {"tasks": [1, 2]}
    for term in [f"md5/{md5}", f"sha1/{sha1}", f"sha256/{HELLO}", f"sha256/{HELLO.upper()}"]:
        assert (await analysed.client.get(f"/files/view/{term}")).json == by_id


async def test_a_sample_that_is_not_there(analysed: Site) -> None:
    for term in [
        "md5/zz",
        "md5/" + "0" * 32,
        "sha1/%ff",
        "sha256/" + "x" * 3000,
        "sha256/%00",
        "id/9999",
        f"id/{1 << 63}",
    ]:
        reply = await analysed.client.get(f"/files/view/{term}")
        assert (reply.status, reply.message) == (404, "File not found"), term
    assert (await analysed.client.get("/files/view/id/0")).message == "Invalid lookup term"
    assert (await analysed.client.get("/files/view/id/0")).status == 400
    for term in ["id/-1", "id/x", "sha512/x", "md5", "crc32/3610A686"]:
        assert (await analysed.client.get(f"/files/view/{term}")).status == 404


async def test_the_bytes_of_a_sample(analysed: Site) -> None:
    for name in [HELLO, HELLO.upper()]:
        check(await analysed.client.get(f"/files/get/{name}"), OCTETS, b"hello")
    for name in ["zz", "0" * 64, HELLO[:-1], f"{HELLO}x", f"{HELLO}%00", f"x%2f{HELLO}", "%2e%2e"]:
        reply = await analysed.client.get(f"/files/get/{name}")
        assert reply.status == 404
        assert reply.message in ("File not found", NOTHING)


async def test_a_part_of_a_file(analysed: Site) -> None:
    path = f"/files/get/{HELLO}"
    for asked, said, body in [
        ("bytes=0-1", "bytes 0-1/5", b"he"),
        ("bytes=3-", "bytes 3-4/5", b"lo"),
        ("bytes=-2", "bytes 3-4/5", b"lo"),
        ("bytes=1-99", "bytes 1-4/5", b"ello"),
    ]:
        reply = await analysed.client.get(path, Range=asked)
        assert (reply.status, reply.body) == (206, body)
        assert (reply.headers["Content-Range"], reply.headers["Content-Type"]) == (said, OCTETS)
        assert int(reply.headers["Content-Length"]) == len(body)
    reply = await analysed.client.get(path, Range="bytes=5-")
    assert (reply.status, reply.message) == (416, "The file has no such range")
    assert reply.headers["Content-Range"] == "bytes */5"
    for asked in ["bytes=x", "lines=0-1", "bytes=2-1", "bytes=--1", "bytes=" + "9" * 40 + "-"]:
        reply = await analysed.client.get(path, Range=asked)
        assert reply.status in (200, 416), asked


async def test_a_file_that_has_not_changed(analysed: Site) -> None:
    path = "/tasks/report/1"
    first = await analysed.client.get(path)
    tag, date = first.headers["ETag"], first.headers["Last-Modified"]
    assert first.headers["Accept-Ranges"] == "bytes"
    for condition in [{"If_None_Match": tag}, {"If_None_Match": "*"}, {"If_Modified_Since": date}]:
        reply = await analysed.client.get(path, **condition)
        assert (reply.status, reply.body) == (304, b"")
    assert (await analysed.client.get(path, If_None_Match='"other"')).body == REPORT
    assert (await analysed.client.get(path, If_Match=tag)).body == REPORT
    changed = await analysed.client.get(path, If_Match='"other"')
    assert changed.status == 412
    assert changed.message.startswith("The file has changed since")
    ranged = {"Range": "bytes=0-0", "If_Range": "Mon, 01 Jan 2001 00:00:00 GMT"}
    assert (await analysed.client.get(path, **ranged)).body == REPORT


async def test_head_says_what_get_would(analysed: Site) -> None:
    for path in ["/tasks/report/1", "/pcap/get/1", f"/files/get/{HELLO}", "/tasks/screenshots/1/1"]:
        got = await analysed.client.get(path)
        head = await analysed.client.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        for name in ["Content-Length", "Content-Type", "ETag", "Last-Modified"]:
            assert head.headers[name] == got.headers[name]
    missing = await analysed.client.ask("HEAD", "/pcap/get/2")
    assert (missing.status, missing.body) == (404, b"")


async def test_nothing_that_a_guest_planted_leads_outside(analysed: Site) -> None:
    secret = analysed.settings.cwd / "secret"
    secret.write_bytes(b"secret")
    folder = analysed.artefacts.analysis(4).path
    folder.mkdir()
    (folder / "reports").symlink_to(analysed.artefacts.analysis(1).path / "reports")
    (folder / "dump.pcap").symlink_to(secret)
    (folder / "shots").mkdir()
    (folder / "shots/0001.jpg").symlink_to(secret)
    os.mkfifo(folder / "shots/0002.jpg")
    (folder / "shots/0003.jpg").mkdir()
    for path in [
        "/tasks/report/4",
        "/pcap/get/4",
        "/tasks/screenshots/4/1",
        "/tasks/screenshots/4/2",
        "/tasks/screenshots/4/3",
    ]:
        reply = await analysed.client.get(path)
        assert reply.status == 404, path
        assert reply.message
    shots = await analysed.client.get("/tasks/screenshots/4")
    assert zipfile.ZipFile(io.BytesIO(shots.body)).namelist() == []


async def test_a_compressed_file_beside_it_is_not_taken_for_it(analysed: Site) -> None:
    analysed.put("reports/report.json.gz", b"planted")
    reply = await analysed.client.get("/tasks/report/1", Accept_Encoding="gzip, br")
    check(reply, "application/json", REPORT)


@pytest.mark.parametrize("without_sendfile", [False, True])
async def test_the_log_counts_what_a_file_s_transfer_takes(
    analysed: Site, monkeypatch: pytest.MonkeyPatch, *, without_sendfile: bool
) -> None:
    monkeypatch.setattr(web_fileresponse, "NOSENDFILE", without_sendfile)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    size, ranged = 100_000, {"Range": "bytes=0-49999"}
    analysed.put("dump.pcap", bytes(size))
    with capture_logs() as logs:
        for method, headers in [("GET", {}), ("GET", ranged), ("HEAD", {})]:
            await analysed.client.ask(method, "/pcap/get/1", headers=headers)
        await until(lambda: len(logs) == 3)  # the last line is written after its answer
    heads = [line["bytes"] - body for line, body in zip(logs, [size, 50_000, 0], strict=True)]
    assert all(0 < head < 1000 for head in heads), heads
