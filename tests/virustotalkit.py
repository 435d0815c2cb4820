"""A server that speaks as much of VirusTotal's API as downloads need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from aiohttp import web

KEY = "the-key"


class StandIn:
    """Serves ``files`` by their hash, from another address, to whom shows the key."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, str | None]] = []
        """Path and key of each request."""
        self.prefix = ""
        self.answer: Callable[[], web.StreamResponse] | None = None
        """What it says to whom has the right key; None: where the file lies."""
        self.before: Callable[[], Awaitable[object]] | None = None
        self.is_moving = False
        """The place where a file lies leads to itself."""
        self.cut: int | None = None
        """Bytes after which it hangs up."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.path, request.headers.get("x-apikey")))
        if self.before is not None:
            await self.before()
        match request.path.removeprefix(self.prefix).strip("/").split("/"):
            case ["api", "v3", "files", digest, "download"]:
                return self._where(request, digest)
            case ["storage", digest] if self.is_moving:
                return web.Response(status=302, headers={"Location": digest})
            case ["storage", digest]:
                return await self._file(request, self.files[digest])
        return web.Response(status=500, text="no such address")

    def _where(self, request: web.Request, digest: str) -> web.StreamResponse:
        if request.headers.get("x-apikey") != KEY:
            return _error(401, "WrongCredentialsError", "Wrong API key")
        if self.answer is not None:
            return self.answer()
        if digest not in self.files:
            return _error(404, "NotFoundError", f'File "{digest}" not found')
        return web.Response(status=302, headers={"Location": f"{self.prefix}/storage/{digest}"})

    async def _file(self, request: web.Request, content: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: self.cut])
        if self.cut is not None and request.transport is not None:
            request.transport.close()
        return response


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)
