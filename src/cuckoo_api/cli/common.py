"""What several commands share: settings, and a client for the running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from cuckoo_api.fleet import load_plugins
from cuckoo_api.model.errors import ConfigError, CuckooError, Unavailable
from cuckoo_api.settings import Settings, load_settings

console = Console()
complaints = Console(stderr=True)


def settings_of(cwd: Path) -> Settings:
    """The working directory's settings; ConfigError also when there is none."""
    if not (cwd / "conf" / "cuckoo.conf").is_file():
        raise ConfigError([f"{cwd} is no working directory yet; run 'cuckoo --cwd {cwd} init'"])
    settings = load_settings(cwd, list(load_plugins().values()))
    for warning in settings.warnings:
        complaints.print(f"[yellow]warning:[/] {warning}", highlight=False)
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
        return await self._json("GET", path, None)

    async def post(self, path: str, data: aiohttp.FormData) -> Any:
        """The answer to a form."""
        return await self._json("POST", path, data)

    async def _json(self, method: str, path: str, data: aiohttp.FormData | None) -> Any:
        try:
            async with self._session.request(method, path, data=data) as response:
                content = await response.json()
        except aiohttp.ClientConnectorError as exc:
            raise Unavailable(
                f"no server answers at {self.url} ({exc.strerror or exc}); start it with "
                "'cuckoo api'"
            ) from exc
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise Unavailable(f"{self.url}{path}: {str(exc) or type(exc).__name__}") from exc
        if response.status >= 400:
            message = content.get("message") if isinstance(content, dict) else content
            raise ServerError(f"the server refused: {message}")
        return content


@asynccontextmanager
async def connect(cwd: Path, url: str | None, token: str | None) -> AsyncIterator[Client]:
    """A client for the server on this working directory, or for the one that ``url`` names."""
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
