"""A running HTTP side without an engine, and its client's end of the connections."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.machine import Machine
from cuckoo_api.settings import Settings
from cuckoo_api.store import Store

BOUNDARY = "--------------boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
PIECE = 16 << 10
"""Bytes that a client sends at once, to have little in memory itself."""
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
"""The SHA-256 of ``hello``."""


@dataclass(frozen=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which says itself that it is JSON."""
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What an error says; it is JSON with that one key."""
        assert self.status >= 400
        assert list(self.json) == ["message"]
        message: str = self.json["message"]
        assert message
        return message


class Client:
    """Asks the server at ``127.0.0.1:port``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._base = f"http://127.0.0.1:{port}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, **how: Any) -> Reply:
        """Any request; the path goes out as it stands."""
        url = URL(self._base + path, encoded=True)
        async with self._session.request(method, url, allow_redirects=False, **how) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, **headers: str) -> Reply:
        """GET; header names are given with underscores."""
        return await self.ask("GET", path, headers=_named(headers))

    async def post(self, path: str, fields: Mapping[str, str] | None = None) -> Reply:
        """POST an urlencoded form."""
        return await self.ask("POST", path, data=fields or {})

    async def upload(self, *contents: bytes, name: str = "h.txt", **fields: str) -> Reply:
        """Submit files, with fields before them."""
        parts = [part(key, value.encode()) for key, value in fields.items()]
        parts += [part("file", content, filename=name) for content in contents]
        return await self.post_form("/tasks/create/file", *parts)

    async def post_form(self, path: str, *parts: bytes) -> Reply:
        """POST a multipart form of such :func:`part`."""
        body = io.BytesIO(form(*parts))
        return await self.ask("POST", path, data=body, headers={"Content-Type": FORM})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, request: bytes) -> Reply:
        """Send bytes that need not be HTTP; the answer."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(5):
                for start in range(0, len(request), PIECE):
                    writer.write(memoryview(request)[start : start + PIECE])
                    await writer.drain()
                return await read_reply(reader)
        finally:
            writer.close()


@dataclass(frozen=True)
class Site:
    """A server without an engine."""

    settings: Settings
    store: Store
    artefacts: Artefacts
    app: web.Application
    client: Client
    wakes: list[None] = field(default_factory=list)
    """One for each time that new work was announced."""

    def kept(self) -> set[str]:
        """Every file under ``storage``."""
        root = self.settings.storage
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}

    async def ids(self) -> list[int]:
        """Of all tasks."""
        return [task["id"] for task in (await self.client.get("/tasks/list")).json["tasks"]]

    async def task(self, task_id: int) -> dict[str, Any]:
        """A task as it is shown."""
        task: dict[str, Any] = (await self.client.get(f"/tasks/view/{task_id}")).json["task"]
        return task

    def put(self, name: str, content: bytes = b"", *, task_id: int = 1) -> Path:
        """A file of an analysis."""
        path = self.artefacts.analysis(task_id).path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    async def configure(self, *machines: Machine) -> None:
        """Have these machines."""
        await self.store.machines.sync(machines)


NewSite = Callable[..., Awaitable[Site]]


def machine(name: str, platform: str = "windows", **values: Any) -> Machine:
    """As the settings would give it."""
    values = {
        "id": 0,
        "name": name,
        "label": f"{name}-label",
        "manager": "fake",
        "ip": "192.168.56.101",
        "platform": platform,
        "resultserver_ip": "192.168.56.1",
        "resultserver_port": 2042,
    } | values
    return Machine(**values)


def part(name: str, content: bytes, *, filename: str | None = None, headers: str = "") -> bytes:
    """One part of a form, as a client without scruples writes it: names go out as they are."""
    shown = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{shown}\r\n{headers}\r\n'
    return head.encode("utf-8", "surrogateescape") + content


def form(*parts: bytes) -> bytes:
    """The body of a multipart form."""
    line = f"--{BOUNDARY}"
    body = b"".join(f"{line}\r\n".encode() + content + b"\r\n" for content in parts)
    return body + f"{line}--\r\n".encode()


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A POST as bytes; ``length`` may promise more than there is."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + body


def get(path: str) -> bytes:
    """A GET as bytes; the path goes out as it stands."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("utf-8", "surrogateescape")


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """One answer with a Content-Length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = CIMultiDict(_pairs(head[1:-2]))
    body = await reader.readexactly(int(headers["Content-Length"]))
    return Reply(int(head[0].split(" ")[1]), CIMultiDictProxy(headers), body)


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(": ")
        yield name, value


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


async def until(condition: Callable[[], object]) -> None:
    """Let the server work until ``condition()`` holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
