"""How a process that only serves the API tells the engine's process that there is work.

An abstract unix datagram socket, named after the working directory: it needs no file, leaves
none behind, and carries no content. Whoever rings it can do no more than make the scheduler look
at the queue.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path


def _name(cwd: Path) -> bytes:
    digest = hashlib.sha256(str(cwd.resolve()).encode()).hexdigest()
    return b"\0cuckoo-api-" + digest[:32].encode()


class Doorbell(asyncio.DatagramProtocol):
    """The engine's end: calls ``on_ring`` for each ring."""

    def __init__(self, on_ring: Callable[[], None]) -> None:
        self._on_ring = on_ring

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._on_ring()


async def listen(cwd: Path, on_ring: Callable[[], None]) -> asyncio.DatagramTransport:
    """Listen until the transport is closed. One engine a working directory: its lock is held."""
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        bell.bind(_name(cwd))
    except OSError:
        bell.close()
        raise
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Doorbell(on_ring), sock=bell)
    return transport


def ring(cwd: Path) -> None:
    """Wake the engine, if one is there; the queue keeps the task either way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bell:
        try:
            bell.sendto(b"", _name(cwd))
        except OSError:
            pass  # no engine runs, or a ring is waiting already
