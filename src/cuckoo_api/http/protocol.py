"""The HTTP protocol below the application: what is no request at all is answered in JSON too."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from cuckoo_api.http.address import UNIX, client_address
from cuckoo_api.http.keys import CLIENT, REQUEST_ID
from cuckoo_api.http.replies import (
    FIXED_HEADERS,
    JSON,
    Message,
    encode,
    failure,
    http_failure,
    new_request_id,
)

log = structlog.get_logger()

KEEPALIVE = 75.0
"""Seconds that an idle connection stays open."""
HEAD = 20.0
"""Seconds from a connection to its first request's last header; later ones have KEEPALIVE."""
STALL = 60.0
"""Seconds without a byte of a body that is waited for."""
LOOK = 5.0
"""Seconds between two looks at who keeps the server waiting."""
RECEIVE = 64 << 10
"""Bytes taken from a connection at once; asyncio's own 256 KiB, held twice while an upload waits
for the disk, would be half of what a request may use."""


class Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_heard",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        transport.max_size = RECEIVE  # type: ignore[attr-defined]  # of every transport that reads
        self._heard = self._loop.time()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        super().data_received(data)
        if self._request_count:  # a first head has its time as a whole
            self._heard = self._loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, its answer included, and none has come in whole."""
        return not (self._request_in_progress or self._messages or self._force_close)

    def is_late(self, now: float) -> bool:
        """Whether the client sends too slowly what the server waits for."""
        if self._request_count == 0:
            return now - self._heard > HEAD
        request, transport = self._current_request, self.transport
        if request is None or request.content.is_eof() or transport is None:
            return False
        if not transport.is_reading():  # it is the server that is slow
            self._heard = now
        return now - self._heard > STALL

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what did not parse, or what failed outside the application; then close."""
        if request.writer.output_size > 0:
            raise ConnectionAbortedError
        if isinstance(exc, ConnectionError):
            raise exc
        request_id = new_request_id()
        if status >= 500:
            log.error("request.failed", request_id=request_id, exc_info=exc)
            text = f"Internal error; the server's log has it as {request_id}"
        else:
            lines = (message or "").strip().splitlines()
            text = f"This is no valid HTTP request: {lines[0]:.200}" if lines else "Bad request"
            log.info("request.malformed", request_id=request_id, reason=text)
        # the application's signal does not run for what never reached it
        response = failure(status, text, {**FIXED_HEADERS, "X-Request-Id": request_id})
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send; an error that was raised before the middleware (a strange Expect) as JSON."""
        if isinstance(resp, web.HTTPException):
            resp = http_failure(resp)
        return await super().finish_response(request, resp, start_time)


def _too_many() -> bytes:
    """The answer to a client for which there is no place."""
    body = encode(Message("The server has too many connections; try again later"))
    headers = {
        **FIXED_HEADERS,
        "Content-Type": JSON,
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Retry-After": "10",
        "X-Request-Id": new_request_id(),
    }
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Server(web.Server):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the other half is for what the requests open
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._look: asyncio.TimerHandle | None = None
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __call__(self) -> web.RequestHandler:
        return Protocol(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.count += 1
        self.idle.clear()
        if self.count > self.limit:
            self._make_room(handler, transport)
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK, self._close_late)

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self.count -= 1
        if not self.count:
            self.idle.set()
            if self._look is not None:
                self._look.cancel()
                self._look = None

    def _close_late(self) -> None:
        """Hang up on those who hold a connection and do not say what for."""
        loop = asyncio.get_running_loop()
        for handler in self.connections:
            if isinstance(handler, Protocol) and handler.is_late(loop.time()):
                log.info("connection.late", remote=_remote(handler))
                handler.force_close()
        self._look = loop.call_later(LOOK, self._close_late)

    def _make_room(self, new: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Close the oldest connection that does nothing; where all do something, the new one."""
        for handler in self.connections:
            if handler is not new and isinstance(handler, Protocol) and handler.is_idle:
                handler.force_close()
                return
        log.warning("connection.refused", open=self.count, remote=_remote(new))
        transport.write(_too_many())
        new.force_close()


def _remote(handler: web.RequestHandler) -> str:
    return handler.peername[0] if isinstance(handler.peername, tuple) else UNIX


class AccessLog(AbstractAccessLogger):
    """One line for each answer, without query strings and headers: they may hold secrets."""

    @property
    def enabled(self) -> bool:
        """Always; what of it is shown is the log's own matter."""
        return True

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Called once the answer is sent; ``time`` in seconds."""
        log.info(
            "request",
            method=request.method,
            path=request.rel_url.raw_path,
            status=response.status,
            ms=round(time * 1000, 1),
            bytes=response.body_length,
            remote=client_address(request),
            client=request.get(CLIENT),
            # not from the context: a malformed request has none
            request_id=request.get(REQUEST_ID) or response.headers.get("X-Request-Id"),
        )


class Runner(web.AppRunner):
    """Runs the application on this module's protocol."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float = 10) -> None:
        """``shutdown_timeout``: seconds that requests under way have to end at a stop."""
        super().__init__(
            app,
            access_log_class=AccessLog,
            keepalive_timeout=KEEPALIVE,
            shutdown_timeout=shutdown_timeout,
        )

    async def wait_idle(self) -> None:
        """Return once no connection is open."""
        if isinstance(self.server, _Server):
            await self.server.idle.wait()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            **self._kwargs,
        )
