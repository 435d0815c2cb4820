"""The route ``sinkhole``: a DNS and HTTP server that answers guests, and leads nowhere."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import structlog

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.network.dns import MAX_QUESTION, answer

log = structlog.get_logger()

MAX_HEADER = 16 << 10
TIMEOUT = 20.0
"""Seconds for one connection, from its beginning to its end."""
MAX_CONNECTIONS = 64
PAGE = b"<!DOCTYPE html>\n<html><head><title>OK</title></head><body><p>OK</p></body></html>\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Sinkhole:
    """Listens on the guests' network, and on unix sockets of guests that have none."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._open = 0

    async def open(self, ip: str, dns_port: int, http_port: int) -> None:
        """Listen on the host's address in the guests' network. Raises ConfigError."""
        loop = asyncio.get_running_loop()
        try:
            self._servers.append(await self._serve(partial(self._dns, ip), ip, dns_port))
            dns_port = self._servers[0].sockets[0].getsockname()[1]
            self._servers.append(await self._serve(self._http, ip, http_port))
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _DnsDatagrams(ip), (ip, dns_port)
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
        """DNS and HTTP, as they are bound."""
        dns, http = (server.sockets[0].getsockname()[1] for server in self._servers)
        return dns, http

    async def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()
        for transport in self._datagrams:
            transport.close()
        self._servers.clear()
        self._datagrams.clear()

    @asynccontextmanager
    async def session(self, sockets: Mapping[str, Path], address: str) -> AsyncIterator[None]:
        """Serve one guest's own sockets, where it has some; ``address`` is what names lead to."""
        handlers: dict[str, Handler] = {"dns": partial(self._dns, address), "http": self._http}
        async with AsyncExitStack() as undo:
            for name, handler in handlers.items():
                if name not in sockets:
                    continue
                path = sockets[name]
                path.unlink(missing_ok=True)
                server = await asyncio.start_unix_server(
                    self._guarded(handler), path, limit=MAX_HEADER
                )
                undo.callback(path.unlink, missing_ok=True)
                undo.callback(server.close)
                path.chmod(0o666)  # its folder is private to the guest's own QEMU
            yield

    async def _serve(self, handler: Handler, ip: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._guarded(handler), ip, port, limit=MAX_HEADER)

    def _guarded(self, handler: Handler) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._open >= MAX_CONNECTIONS:
                writer.transport.abort()
                return
            self._open += 1
            try:
                async with asyncio.timeout(TIMEOUT):
                    await handler(reader, writer)
            except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
                writer.transport.abort()  # the guest's loss
            finally:
                self._open -= 1
                writer.close()

        return serve

    async def _dns(
        self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
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

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one page; what the request carried is in the capture."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length" and value.strip().isdigit():
                length = min(int(value), 1 << 40)
        while length > 0 and (data := await reader.read(min(length, MAX_HEADER))):
            length -= len(data)
        body = b"" if head.startswith(b"HEAD ") else PAGE
        writer.write(
            b"HTTP/1.1 200 OK\r\nServer: httpd\r\nContent-Type: text/html\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + body
        )
        await writer.drain()


class _DnsDatagrams(asyncio.DatagramProtocol):
    def __init__(self, address: str) -> None:
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = answer(data, self._address)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)
