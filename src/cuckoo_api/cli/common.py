"""What several commands share: settings, and a client for the running server."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.text import Text

from cuckoo_api.cli.terminal import plain
from cuckoo_api.fleet import load_plugins
from cuckoo_api.model.errors import ConfigError, CuckooError, Unavailable
from cuckoo_api.settings import Settings, load_settings

console = Console()
complaints = Console(stderr=True)


CHUNK = 256 << 10


def text(value: object, style: str = "") -> Text:
    """Such plain text for rich, which finds no markup in it; None is empty."""
    return Text("" if value is None else plain(value), style)


def need_cwd(cwd: Path) -> None:
    """ConfigError unless this is a working directory."""
    if not (cwd / "conf" / "cuckoo.conf").is_file():
        raise ConfigError([f"{cwd} is no working directory yet; run 'cuckoo --cwd {cwd} init'"])


def settings_of(
    cwd: Path, *, machinery: Sequence[str] | None = None, credentials: bool = True
) -> Settings:
    """The working directory's settings; ConfigError also when there is none.

    ``machinery`` and ``credentials`` are those of ``load_settings``.
    """
    need_cwd(cwd)
    plugins = list(load_plugins().values())
    settings = load_settings(cwd, plugins, machinery=machinery, credentials=credentials)
    for warning in settings.warnings:
        complaints.print(text("warning:", "yellow"), text(warning), soft_wrap=True)
    return settings


class ServerError(CuckooError):
    """The server refused; the text is its own."""


class Client:
    """The server's REST API, as far as the commands need it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def get(self, path: str) -> Any:
        """The JSON at a path."""
        return await self.ask("GET", path)

    async def post(self, path: str, data: aiohttp.FormData) -> Any:
        """The answer to a form."""
        return await self.ask("POST", path, data)

    async def ask(self, method: str, path: str, data: aiohttp.FormData | None = None) -> Any:
        """The JSON that is answered."""
        with self._reachable(path):
            async with self._session.request(method, path, data=data) as response:
                return await _content(response)

    async def download(self, path: str) -> AsyncIterator[bytes]:
        """What is at a path, piece by piece."""
        with self._reachable(path):
            async with self._session.get(path) as response:
                if response.status >= 400:
                    await _content(response)
                async for data in response.content.iter_chunked(CHUNK):
                    yield data

    async def changes(self, task_id: int) -> AsyncGenerator[None]:
        """One at once, then one whenever the task may have changed, until the server ends it."""
        with self._reachable("/events"):
            async with self._session.get("/events") as response:
                if response.status >= 400:
                    await _content(response)
                yield
                kind = b""
                async for line in response.content:
                    name, _, value = line.strip().partition(b": ")
                    if name == b"event":
                        kind = value
                    elif name == b"data" and _concerns(task_id, kind, value):
                        yield

    @contextmanager
    def _reachable(self, path: str) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as exc:
            raise Unavailable(
                f"no server answers at {self.url} ({exc.strerror or exc}); start it with "
                "'cuckoo api'"
            ) from exc
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise Unavailable(f"{self.url}{path}: {str(exc) or type(exc).__name__}") from exc


def _concerns(task_id: int, kind: bytes, data: bytes) -> bool:
    return kind == b"gap" or (kind == b"task" and json.loads(data)["id"] == task_id)


async def _content(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer; ServerError where it is a refusal."""
    content = await response.json()
    if response.status >= 400:
        message = content.get("message") if isinstance(content, dict) else content
        raise ServerError(f"the server refused: {message}")
    return content


@asynccontextmanager
async def connect(cwd: Path, url: str | None, token: str | None) -> AsyncIterator[Client]:
    """A client for the server on this working directory, or for the one that ``url`` names."""
    token = os.environ.get("CUCKOO_TOKEN") if token is None else token
    if url is None or token is None:
        settings = settings_of(cwd) if url is None or (cwd / "conf").is_dir() else None
        if settings is not None:
            host = f"[{settings.api.host}]" if ":" in settings.api.host else settings.api.host
            url = url or f"http://{host}:{settings.api.port}"
            token = settings.cuckoo.api_token if token is None else token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base = (url or "").rstrip("/")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    async with aiohttp.ClientSession(base, headers=headers, timeout=timeout) as session:
        yield Client(session, base)
