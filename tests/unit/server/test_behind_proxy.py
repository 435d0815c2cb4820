"""Where a client is, when a proxy on a unix socket asks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from servekit import serving

from cuckoo_api.settings import CuckooSection, Settings

LIST = "http://localhost/tasks/list"


async def ask(path: Path, **headers: str) -> int:
    """The status of an answer."""
    connector = aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
        session.get(LIST) as response,
    ):
        return response.status


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("192.0.2.8", "192.0.2.8"),
        ("6.6.6.6, 192.0.2.8", "192.0.2.8"),
        ("2001:db8::1", "2001:db8::1"),
        ("somebody", "unix"),
        ("", "unix"),
    ],
)
async def test_the_proxys_word_is_taken(
    settings: Settings, tmp_path: Path, logs: list[Any], said: str, logged: str
) -> None:
    path = tmp_path / "api.sock"
    async with serving(settings, unix_socket=path):
        await ask(path, **{"X-Forwarded-For": said})
    assert [log["remote"] for log in logs if log["event"] == "request"] == [logged]


async def test_over_tcp_nobodys_word_is(settings: Settings, logs: list[Any]) -> None:
    async with serving(settings) as url, aiohttp.ClientSession() as session:
        headers = {"X-Forwarded-For": "6.6.6.6"}
        async with session.get(f"{url}/tasks/list", headers=headers):
            pass
    assert [log["remote"] for log in logs if log["event"] == "request"] == ["127.0.0.1"]


async def test_without_a_token_a_proxy_may_ask_for_this_machine_alone(
    settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, cuckoo=CuckooSection(machinery=(), freespace=0))
    path = tmp_path / "api.sock"
    async with serving(settings, unix_socket=path):
        assert await ask(path) == 200
        assert await ask(path, **{"X-Forwarded-For": "127.0.0.1"}) == 200
        assert await ask(path, **{"X-Forwarded-For": "203.0.113.9"}) == 403
        assert await ask(path, **{"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}) == 403
