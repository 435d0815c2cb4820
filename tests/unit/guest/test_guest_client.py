"""GuestClient against agents of other makes, hostile ones, and ones that vanish."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cuckoo_api.guest import (
    AgentRefused,
    AgentUnreachable,
    BadAnswer,
    GuestClient,
    GuestError,
    GuestJob,
    client,
)
from cuckoo_api.model.task import Task

pytestmark = pytest.mark.slow

CUCKOO = {"message": "Cuckoo Agent!", "version": "0.10", "features": ["execpy", "pinning", "logs"]}
CAPE = {"message": "CAPE Agent!", "version": "0.22", "features": ["execpy", "largefile", "pinning"]}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OtherAgent:
    """Notes what it is asked, and answers as told."""

    def __init__(self, index: dict[str, Any], environ: dict[str, str]) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {
            "GET /": (200, index),
            "GET /pinning": (200, {"message": "Successfully pinned Agent", "client_ip": "x"}),
            "GET /environ": (200, {"message": "Environment variables", "environ": environ}),
            "POST /mkdtemp": (200, {"message": "made", "dirpath": "/tmpabc"}),
            "GET /status": (200, {"message": "s", "status": "complete", "description": None}),
        }

    async def handle(self, request: web.Request) -> web.Response:
        form = {}
        if request.method == "POST":
            assert request.content_length is not None  # the old agents cannot do without
            for name, value in (await request.post()).items():
                part = value.file.read().decode() if isinstance(value, web.FileField) else value
                form[name] = str(part)
        key = f"{request.method} {request.path}"
        self.asked.append((key, form))
        status, body = self.answers.get(key, (200, {"message": "ok"}))
        return web.json_response(body, status=status)


@asynccontextmanager
async def serving(handler: Handler, path: Path) -> AsyncIterator[GuestClient]:
    """A client of an agent that answers everything with this handler, on a unix socket."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path / "agent")).start()
        async with GuestClient(f"unix:{path}/agent") as guest:
            yield guest
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(raw: bytes, path: Path) -> AsyncIterator[GuestClient]:
    """A client of a server that sends these bytes and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        try:
            await writer.drain()
        except ConnectionError:
            pass  # the client had enough
        writer.close()

    server = await asyncio.start_unix_server(serve, path / "agent")
    async with server, GuestClient(f"unix:{path}/agent") as guest:
        yield guest


@pytest.fixture
def job(tmp_path: Path, task: Task) -> GuestJob:
    sample = tmp_path / "sample"
    sample.write_text("sample")
    archive = tmp_path / "analyzer-linux-0123.zip"
    archive.write_text("zip")
    return GuestJob(
        task=task,
        sample=sample,
        analyzer=archive,
        resultserver_ip="192.168.55.1",
        resultserver_port=2042,
        timeout=30,
    )


@pytest.mark.parametrize("index", [CUCKOO, CAPE], ids=["cuckoo", "cape"])
async def test_the_sequence_that_agents_expect(
    tmp_path: Path, job: GuestJob, index: dict[str, Any]
) -> None:
    other = OtherAgent(index, {"HOME": "/root"})
    async with serving(other.handle, tmp_path) as guest:
        info = await guest.wait_ready(5)
        await guest.start(job)
        outcome = await guest.wait(5, asyncio.Event())
    assert info.version == index["version"]
    assert outcome.state == "complete"
    keys = [key for key, _ in other.asked]
    assert keys[:4] == ["GET /", "GET /pinning", "GET /environ", "POST /mkdtemp"]
    assert keys[4:] == ["POST /extract", *["POST /store"] * 2, "POST /execpy", "GET /status"]
    forms = [form for _, form in other.asked]
    assert forms[4] == {"dirpath": "/tmpabc", "zipfile": "zip"}
    assert forms[5]["filepath"] == "/tmpabc/analysis.conf"
    assert "timeout = 30\n" in forms[5]["file"]
    assert forms[6] == {"filepath": "/tmp/sample.sh", "file": "sample"}
    assert forms[7] == {"filepath": "/tmpabc/analyzer.py", "async": "yes", "cwd": "/tmpabc"}


async def test_windows_places_and_an_agent_without_execpy(tmp_path: Path, job: GuestJob) -> None:
    index = {"message": "CAPE Agent!", "version": "0.22", "features": ["execute"]}
    other = OtherAgent(index, {"SYSTEMDRIVE": "C:", "TEMP": "C:\\Temp"})
    other.answers["POST /mkdtemp"] = (200, {"dirpath": "C:\\tmpabc"})
    async with serving(other.handle, tmp_path) as guest:
        await guest.wait_ready(5)
        await guest.start(job)
    asked = dict(other.asked)
    assert "GET /pinning" not in asked
    assert asked["POST /store"]["filepath"] == "C:\\Temp\\sample.sh"
    assert asked["POST /execute"]["command"] == "python C:\\tmpabc\\analyzer.py"


async def test_installed_analyzer_is_used_when_it_is_the_same(
    tmp_path: Path, job: GuestJob
) -> None:
    installed = {"analyzer": {"digest": "0123", "folder": "/opt/a"}, "temporary": "/var/tmp"}
    index = {**CUCKOO, **installed, "features": ["execpy", "analysis"]}
    other = OtherAgent(index, {})
    async with serving(other.handle, tmp_path) as guest:
        await guest.wait_ready(5)
        await guest.start(job)
        other.answers["GET /"][1]["analyzer"]["digest"] = "another"
        await guest.wait_ready(5)
        await guest.start(job)
    assert [key for key, _ in other.asked[:3]] == ["GET /", "POST /analysis", "GET /"]
    form = other.asked[1][1]
    assert (form["filepath"], form["file"]) == ("/var/tmp/sample.sh", "sample")
    assert "timeout = 30\n" in form["conf"]
    assert "POST /extract" in [key for key, _ in other.asked]


async def test_a_url_needs_one_request_too(tmp_path: Path, job: GuestJob) -> None:
    installed = {"analyzer": {"digest": "0123", "folder": "/opt/a"}, "temporary": "/var/tmp"}
    other = OtherAgent({**CUCKOO, **installed, "features": ["analysis"]}, {})
    async with serving(other.handle, tmp_path) as guest:
        await guest.wait_ready(5)
        await guest.start(dataclasses.replace(job, sample=None))
    [_, (asked, form)] = other.asked
    assert asked == "POST /analysis"
    assert set(form) == {"conf"}


async def test_agent_pinned_before_is_no_fault(tmp_path: Path, job: GuestJob) -> None:
    other = OtherAgent(CUCKOO, {})
    other.answers["GET /pinning"] = (500, {"message": "already been pinned"})
    async with serving(other.handle, tmp_path) as guest:
        await guest.wait_ready(5)
        await guest.start(job)
    assert other.asked[-1][0] == "POST /execpy"


async def test_refusal_names_the_reason(tmp_path: Path, job: GuestJob) -> None:
    other = OtherAgent(CUCKOO, {})
    other.answers["POST /extract"] = (500, {"message": "Error extracting zip file"})
    async with serving(other.handle, tmp_path) as guest:
        await guest.wait_ready(5)
        with pytest.raises(AgentRefused, match="Error extracting zip file") as caught:
            await guest.start(job)
    assert caught.value.agent_status == 500


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"garbage\r\n\r\n", GuestError),
        (OK + b"\r\nnot json", BadAnswer),
        (OK + b"\r\n[1, 2]", BadAnswer),
        (OK + b'\r\n{"environ": {"a": 1}}', BadAnswer),
        (OK + b'\r\n{"environ": {"a": "\xff"}}', BadAnswer),
        (OK + b"\r\n" + b"[" * 200_000, BadAnswer),
        (OK + b'\r\n{"environ": {"a": "' + b"x" * (2 << 20) + b'"}}', BadAnswer),
        (OK + b"Content-Length: 500\r\n\r\nshort", AgentUnreachable),
        (OK + b"Content-Length: -5\r\n\r\n", GuestError),
        (OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n{}", GuestError),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", AgentRefused),
        (b"HTTP/1.1 500 No\r\n\r\n\xff\xfe", AgentRefused),
        (b"", AgentUnreachable),
    ],
)
async def test_hostile_answers_become_guest_errors(
    tmp_path: Path, job: GuestJob, raw: bytes, error: type[GuestError]
) -> None:
    async with answering(raw, tmp_path) as guest:
        guest._info = client.AgentInfo(features=("execpy",))
        with pytest.raises(error):
            await guest.start(job)


async def test_compressed_bomb_is_not_unpacked(tmp_path: Path, job: GuestJob) -> None:
    raw = OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbomb"
    async with answering(raw, tmp_path) as guest:
        guest._info = client.AgentInfo(features=("execpy",))
        with pytest.raises(BadAnswer):
            await guest.start(job)


async def test_nobody_answers(tmp_path: Path) -> None:
    async with GuestClient(f"unix:{tmp_path}/nobody") as guest:
        with pytest.raises(AgentUnreachable, match=r"did not answer within 0\.1 s"):
            await guest.wait_ready(0.1)


async def test_agent_that_comes_up_late_is_found_soon(tmp_path: Path) -> None:
    async with GuestClient(f"unix:{tmp_path}/agent") as waiting:
        ready = asyncio.create_task(waiting.wait_ready(10))
        await asyncio.sleep(0)
        async with serving(OtherAgent(CUCKOO, {}).handle, tmp_path):
            async with asyncio.timeout(2):
                assert (await ready).version == "0.10"


class Analysis:
    """An agent in the middle of an analysis; ``state`` is what its status says."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.asked = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.set()
        body = {"status": self.state, "description": "why"}
        return web.Response(text=json.dumps(body))


@pytest.mark.parametrize("state", ["complete", "failed", "exception"])
async def test_hint_makes_the_end_known_at_once(tmp_path: Path, state: str) -> None:
    analysis, hint = Analysis("running"), asyncio.Event()
    async with serving(analysis.handle, tmp_path) as guest:
        waiting = asyncio.create_task(guest.wait(60, hint))
        await analysis.asked.wait()
        analysis.state = state
        hint.set()
        async with asyncio.timeout(2):
            outcome = await waiting
    assert (outcome.state, outcome.description) == (state, "why")


async def test_running_to_the_end_of_its_time(tmp_path: Path) -> None:
    async with serving(Analysis("running").handle, tmp_path) as guest:
        assert (await guest.wait(0.05, asyncio.Event())).state == "timeout"


async def test_unknown_words_are_not_an_end(tmp_path: Path) -> None:
    async with serving(Analysis("\x00pwned").handle, tmp_path) as guest:
        assert (await guest.wait(0.05, asyncio.Event())).state == "timeout"


@pytest.mark.parametrize("state", [None, "init"], ids=["gone", "restarted"])
async def test_lost_when_results_ended_and_the_agent_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    monkeypatch.setattr(client, "LOST_AFTER", 0.1)
    hint = asyncio.Event()
    hint.set()
    if state is None:
        async with GuestClient(f"unix:{tmp_path}/nobody") as guest:
            outcome = await guest.wait(60, hint)
    else:
        async with serving(Analysis(state).handle, tmp_path) as guest:
            outcome = await guest.wait(60, hint)
    assert outcome.state == "lost"


async def test_silence_is_borne_while_results_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOST_AFTER", 0.05)
    monkeypatch.setattr(client, "STATUS_INTERVAL", 0.02)
    async with GuestClient(f"unix:{tmp_path}/nobody") as guest:
        loop = asyncio.get_running_loop()
        start = loop.time()
        outcome = await guest.wait(0.3, asyncio.Event())
    assert outcome.state == "lost"
    assert loop.time() - start >= 0.3
