"""What happens, as server-sent events."""

from __future__ import annotations

import asyncio

import msgspec
import structlog
from aiohttp import web

from cuckoo_api.analysis.submission import parse_int
from cuckoo_api.http.address import client_address
from cuckoo_api.http.keys import SERVICE, STREAMS
from cuckoo_api.http.params import MAX_ID
from cuckoo_api.http.tasks import LEGACY
from cuckoo_api.model.errors import Unavailable
from cuckoo_api.model.task import Status
from cuckoo_api.store import Event

log = structlog.get_logger()

EVENT_STREAM = "text/event-stream"
MAX_STREAMS = 64
"""Open at the same time, in one process."""
KEEPALIVE = 15.0
"""Seconds without an event after which a comment is sent: what is between must not hang up."""
STALLED = 30.0
"""Seconds for a client to take what was sent to it."""


async def stream(request: web.Request) -> web.StreamResponse:
    """Changes of tasks and machines as they happen, and those after ``Last-Event-ID``."""
    last = _last_id(request)
    streams = request.app[STREAMS]
    if streams.locked():
        raise Unavailable("As many event streams are open already as may be; try again later")
    response = web.StreamResponse(
        headers={"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}  # nginx would hold it
    )
    feed = request.app[SERVICE].events
    async with streams:
        if last is None:  # before the client hears that it is heard: what it then does is told
            last = await feed.newest()
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await response.write(b":\n\n")  # the headers go out with it
        legacy = request.app[SERVICE].settings.api.legacy_statuses
        async for events in feed.follow(last, pause=KEEPALIVE):
            text = "".join(_shown(event, legacy=legacy) for event in events) or ":\n\n"
            try:
                async with asyncio.timeout(STALLED):
                    await response.write(text.encode())
            except TimeoutError:
                log.info("events.stalled", remote=client_address(request))
                if request.transport is not None:
                    request.transport.abort()  # a mere close would wait for it to take the rest
                raise ConnectionAbortedError from None
    return response


def _last_id(request: web.Request) -> int | None:
    """Header or parameter; the header is newer, where a client that was cut off sends both."""
    text = request.headers.get("Last-Event-ID") or request.query.get("last_event_id")
    return parse_int("Last-Event-ID", text, low=0, high=MAX_ID) if text else None


def _shown(event: Event, *, legacy: bool) -> str:
    data = _legacy_data(event.data) if legacy and event.kind == "task" else event.data
    return f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n"


def _legacy_data(data: str) -> str:
    values = msgspec.json.decode(data)
    for name in ("status", "previous"):
        if values[name] in LEGACY:
            values[name] = Status.REPORTED
    return msgspec.json.encode(values).decode()
