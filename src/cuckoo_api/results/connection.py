"""One guest's connection, with a fixed amount of memory whatever the guest sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from cuckoo_api.results.protocol import MAX_LINE, Refused

BLOCK = 64 << 10
"""Bytes that wait here at most; as many again may be on their way to the disk."""


class Connection(asyncio.BufferedProtocol):
    """Lines first, then bytes up to the end of the stream.

    When the buffer is full the socket is not read any more: TCP makes the guest wait.
    """

    def __init__(self, opened: Callable[[Connection], None]) -> None:
        self._opened = opened
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._end = 0
        self._over = False
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Bytes that have arrived and were not read yet."""
        return self._end

    @property
    def peer(self) -> str:
        """The address that the guest connects from; empty for a unix socket."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return str(name[0]) if isinstance(name, tuple) and name else ""

    async def line(self) -> bytes:
        """A line with its end. Raises Refused when it is too long, EOFError when none comes."""
        while (found := self._buffer.find(b"\n", 0, self._end)) < 0:
            if self._end >= MAX_LINE:
                break
            if self._over:
                if self._end:
                    raise Refused("a line without an end")
                raise EOFError
            await self._more()
        if not 0 <= found < MAX_LINE:
            raise Refused(f"a line of more than {MAX_LINE} bytes")
        return self._take(found + 1)

    async def read(self) -> bytes:
        """What has arrived, at most BLOCK bytes; waits for some. Empty at the end."""
        while not self._end:
            if self._over:
                return b""
            await self._more()
        return self._take(self._end)

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        rest = self._end - size
        self._buffer[:rest] = self._buffer[size : self._end]
        self._end = rest
        if self._transport is not None and not self._over:
            self._transport.resume_reading()
        return data

    # -- called by the event loop ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if not self._buffer:
            self._buffer = bytearray(BLOCK)  # not before there is something: idle costs nothing
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if self._end == BLOCK and self._transport is not None:
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        self._over = True
        self._arrived.set()
        return True  # stay open: the guest sees the end when its data is on the disk

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._arrived.set()
