"""The route ``sinkhole``: a DNS and HTTP server that answers guests, and leads nowhere."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import structlog

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.network.dns import MAX_QUESTION, answer
from cuckoo_api.network.web import CONTINUE, parse_head, respond

log = structlog.get_logger()

MAX_HEADER = 16 << 10
TIMEOUT = 20.0
"""Seconds for one connection, from its beginning to its end."""
MAX_PER_GUEST = 32
MAX_CONNECTIONS = 512
"""Of all guests together: one may have many addresses."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Sinkhole:
    """Listens on the guests' network, and on unix sockets of guests that have none."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._door = _Door()

    async def open(self, ip: str, dns_port: int, http_port: int) -> None:
        """Listen on an address of the host in the guests' network. Raises ConfigError.

        May be called for several addresses; a name leads to the address that was asked.
        """
        loop = asyncio.get_running_loop()
        try:
            dns = await self._serve(partial(_dns, ip), ip, dns_port)
            await self._serve(_http, ip, http_port)
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _DnsDatagrams(ip), (ip, dns.sockets[0].getsockname()[1])
            )
            self._datagrams.append(transport)
        except OSError as exc:
            await self.close()
            fault = (
                f"conf/routing.conf [routing] route = sinkhole: cannot listen on {ip}, ports "
                f"{dns_port} and {http_port}: {exc.strerror or exc}; allowed: free ports (below "
                "1024 they take root)"
            )
            raise ConfigError([fault]) from exc

    @property
    def ports(self) -> tuple[int, int]:
        """DNS and HTTP, as they are bound on the first address."""
        dns, http, *_ = (server.sockets[0].getsockname()[1] for server in self._servers)
        return dns, http

    async def close(self) -> None:
        """Stop listening and hang up."""
        for server in self._servers:
            server.close()
        for transport in self._datagrams:
            transport.close()
        self._servers.clear()
        self._datagrams.clear()
        await self._door.close()

    @asynccontextmanager
    async def session(self, sockets: Mapping[str, Path], address: str) -> AsyncIterator[None]:
        """Serve one guest's own sockets, where it has some; ``address`` is what names lead to."""
        handlers: dict[str, Handler] = {"dns": partial(_dns, address), "http": _http}
        async with AsyncExitStack() as undo:
            door = _Door()
            undo.push_async_callback(door.close)
            for name, handler in handlers.items():
                if name in sockets:
                    await _listen(undo, sockets[name], door.guard(handler))
            yield

    async def _serve(self, handler: Handler, ip: str, port: int) -> asyncio.Server:
        server = await asyncio.start_server(self._door.guard(handler), ip, port, limit=MAX_HEADER)
        self._servers.append(server)
        return server


class _Door:
    """The connections of some guests: so many of each, for so long, and all ended together."""

    def __init__(self) -> None:
        self._guests: dict[asyncio.Task[None], str] = {}

    def guard(self, handler: Handler) -> Callable[..., None]:
        """What a server calls for a new connection."""

        def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = writer.get_extra_info("peername")
            guest = str(peer[0]) if isinstance(peer, tuple) else ""
            there = Counter(self._guests.values())
            if there[guest] >= MAX_PER_GUEST or there.total() >= MAX_CONNECTIONS:
                writer.transport.abort()
                return
            task = asyncio.create_task(_serve(handler, reader, writer))
            self._guests[task] = guest
            task.add_done_callback(self._left)

        return enter

    async def close(self) -> None:
        """Hang up on everybody."""
        tasks = list(self._guests)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _left(self, task: asyncio.Task[None]) -> None:
        del self._guests[task]
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("sinkhole.failed", exc_info=fault)


async def _serve(
    handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        async with asyncio.timeout(TIMEOUT):
            await handler(reader, writer)
    except (OSError, EOFError, asyncio.LimitOverrunError):  # a time-out is an OSError
        writer.transport.abort()  # the guest's loss
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
    finally:
        writer.close()


async def _dns(address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """DNS over a stream: each message with its length before it."""
    while head := await reader.read(1):
        (length,) = struct.unpack(">H", head + await reader.readexactly(1))
        if length > MAX_QUESTION:
            return
        reply = answer(await reader.readexactly(length), address)
        if reply is None:
            return
        writer.write(struct.pack(">H", len(reply)) + reply)
        await writer.drain()


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one page; what the request carried is in the capture."""
    request = parse_head(await _head(reader))
    if request.waits:
        writer.write(CONTINUE)
    left = request.length
    while left > 0 and (data := await reader.read(min(left, MAX_HEADER))):
        left -= len(data)
    writer.write(respond(request))
    await writer.drain()


async def _head(reader: asyncio.StreamReader) -> list[bytes]:
    """The lines up to the empty one. EOFError when nothing comes; LimitOverrunError."""
    lines: list[bytes] = []
    size = 0
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            line = exc.partial  # it has said what it wants all the same
        size += len(line)
        if size > MAX_HEADER:
            raise asyncio.LimitOverrunError("a header without an end", size)
        if line.rstrip(b"\r\n"):
            lines.append(line)
        elif lines:
            return lines
        elif not line:
            raise EOFError


async def _listen(undo: AsyncExitStack, path: Path, enter: Callable[..., None]) -> None:
    """A unix socket that belongs to the owner of the folder it is in.

    That is the user that the guest's hypervisor runs as. He may have put a link in our way:
    the change of owner does not follow it.
    """
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(enter, path, limit=MAX_HEADER)
    undo.callback(path.unlink, missing_ok=True)
    undo.callback(server.close)
    os.chown(path, path.parent.stat().st_uid, -1, follow_symlinks=False)


class _DnsDatagrams(asyncio.DatagramProtocol):
    def __init__(self, address: str) -> None:
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def pause_writing(self) -> None:
        self._full = True  # DNS asks again: better that than answers that pile up here

    def resume_writing(self) -> None:
        self._full = False

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = answer(data, self._address)
        if reply is not None and self._transport is not None and not self._full:
            self._transport.sendto(reply, addr)
