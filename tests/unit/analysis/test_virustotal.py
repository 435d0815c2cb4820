"""Downloads by hash, from a stand-in that speaks VirusTotal's API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cuckoo_api.analysis.virustotal import NotFetched, VirusTotal
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.errors import TooLarge
from cuckoo_api.model.sample import NewSample
from cuckoo_api.settings import VirusTotalSection
from virustotalkit import KEY, StandIn

CONTENT = b"MZ" + bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with StandIn() as server:
        server.files[DIGEST] = CONTENT
        yield server


@pytest.fixture
async def artefacts(tmp_path: Path) -> AsyncIterator[Artefacts]:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    yield artefacts
    await artefacts.close()


async def fetch(
    artefacts: Artefacts, url: str, *, key: str = KEY, timeout: float = 5, max_size: int = 1 << 20
) -> NewSample:
    section = VirusTotalSection(key=key, url=url, timeout=timeout)  # type: ignore[arg-type]
    async with artefacts.receive(max_size=max_size) as upload:
        await VirusTotal(section).fetch(DIGEST, upload)
        return await upload.finish()


async def failure(artefacts: Artefacts, url: str, **how: object) -> str:
    with pytest.raises(NotFetched) as caught:
        await fetch(artefacts, url, **how)  # type: ignore[arg-type]
    return str(caught.value)


async def test_a_file_comes_by_its_hash(artefacts: Artefacts, stand_in: StandIn) -> None:
    assert (await fetch(artefacts, stand_in.url)).sha256 == DIGEST


async def test_the_key_is_not_shown_to_whom_a_redirect_leads(
    artefacts: Artefacts, stand_in: StandIn
) -> None:
    await fetch(artefacts, stand_in.url)
    assert stand_in.seen == [
        (f"/api/v3/files/{DIGEST}/download", KEY),
        (f"/storage/{DIGEST}", None),
    ]


async def test_an_address_below_a_path_is_kept(artefacts: Artefacts, stand_in: StandIn) -> None:
    stand_in.prefix = "/proxy"
    assert (await fetch(artefacts, f"{stand_in.url}/proxy")).sha256 == DIGEST


async def test_without_a_key_nothing_is_asked(artefacts: Artefacts, stand_in: StandIn) -> None:
    said = await failure(artefacts, stand_in.url, key="")
    assert said == "no key is configured; set [virustotal] key in conf/cuckoo.conf"
    assert stand_in.seen == []


async def test_a_wrong_key(artefacts: Artefacts, stand_in: StandIn) -> None:
    said = await failure(artefacts, stand_in.url, key="wrong")
    assert said == "it does not accept the key of [virustotal]"


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "ForbiddenError", "the key of [virustotal] has no right to download files"),
        (404, "NotFoundError", "it does not have that file"),
        (429, "QuotaExceededError", "the quota of the key of [virustotal] is used up"),
        (503, "TransientError", "it answered 503: Try again"),
    ],
)
async def test_its_errors_are_told_in_words(
    artefacts: Artefacts, stand_in: StandIn, status: int, code: str, said: str
) -> None:
    body = {"error": {"code": code, "message": "Try\nagain"}}
    stand_in.answer = lambda: web.json_response(body, status=status)
    assert await failure(artefacts, stand_in.url) == said


@pytest.mark.parametrize("body", ["", "<html>", "[1]", '{"error": 1}'])
async def test_an_error_that_is_no_json(artefacts: Artefacts, stand_in: StandIn, body: str) -> None:
    stand_in.answer = lambda: web.Response(text=body, status=502)
    assert await failure(artefacts, stand_in.url) == "it answered 502"


@pytest.mark.parametrize("where", ["ftp://elsewhere/x", "file:///etc/passwd"])
async def test_a_redirect_to_what_is_no_web_server_is_not_followed(
    artefacts: Artefacts, stand_in: StandIn, where: str
) -> None:
    stand_in.answer = lambda: web.Response(status=302, headers={"Location": where})
    said = await failure(artefacts, stand_in.url)
    assert said == "it leads to an address that is not served by HTTPS"


async def test_redirects_come_to_an_end(artefacts: Artefacts, stand_in: StandIn) -> None:
    stand_in.is_moving = True
    assert await failure(artefacts, stand_in.url) == "it leads from one address to the next"
    assert len(stand_in.seen) == 4


async def test_a_refusal_where_the_file_lies_is_not_the_key_s_fault(
    artefacts: Artefacts, stand_in: StandIn
) -> None:
    headers = {"Location": "/api/v3/files/x/download"}
    stand_in.answer = lambda: web.Response(status=302, headers=headers)
    assert await failure(artefacts, stand_in.url) == "it answered 401: Wrong API key"


async def test_a_file_that_is_too_large_is_broken_off(
    artefacts: Artefacts, stand_in: StandIn, tmp_path: Path
) -> None:
    with pytest.raises(TooLarge):
        await fetch(artefacts, stand_in.url, max_size=1000)
    assert list((tmp_path / "binaries").iterdir()) == []


async def test_a_transfer_that_breaks_off_gives_no_file(
    artefacts: Artefacts, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.cut = 1000
    assert await failure(artefacts, stand_in.url) == "it cannot be reached"
    assert list((tmp_path / "binaries").iterdir()) == []


async def test_one_that_does_not_answer_is_given_up(
    artefacts: Artefacts, stand_in: StandIn
) -> None:
    never = asyncio.Event()
    stand_in.before = never.wait
    assert await failure(artefacts, stand_in.url, timeout=0.05) == "it took longer than 0.05 s"
    never.set()


async def test_nobody_there(artefacts: Artefacts, unused_tcp_port: int) -> None:
    assert await failure(artefacts, f"http://127.0.0.1:{unused_tcp_port}") == "it cannot be reached"
