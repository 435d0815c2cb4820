"""A client that follows ``/events``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from httpkit import Site


@dataclass(frozen=True)
class Told:
    """One event as it came."""

    id: int
    kind: str
    data: Any


class Stream:
    """An open stream of events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def block(self) -> dict[str, str]:
        """The next event's fields; none for a comment."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(5):
            while (line := (await self.response.content.readline()).decode()) != "\n":
                assert line.endswith("\n"), "the stream has ended"
                name, _, value = line[:-1].partition(":")
                if name:
                    fields[name] = value.removeprefix(" ")
        return fields

    async def next(self) -> Told:
        """The next event."""
        while not (fields := await self.block()):
            pass
        assert list(fields) == ["id", "event", "data"]
        return Told(int(fields["id"]), fields["event"], json.loads(fields["data"]))

    async def ended(self) -> bytes:
        """What comes until the server closes the stream in good order."""
        async with asyncio.timeout(5):
            return await self.response.content.read()


@asynccontextmanager
async def following(site: Site, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    """Follow the events; header names are given with underscores."""
    url = f"http://127.0.0.1:{site.client.port}/events{query}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.get(url, headers=named) as response:
        assert response.status == 200, await response.text()
        stream = Stream(response)
        assert await stream.block() == {}  # a comment: it listens
        yield stream
