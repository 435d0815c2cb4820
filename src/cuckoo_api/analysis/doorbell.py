"""How the processes of one working directory tell each other that something has happened.

Abstract unix datagram sockets, named after the directory: they need no file, leave none behind,
and carry no content. Whoever rings one can do no more than make a process look at the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger()

BELLS = 16
"""Processes that can be rung: the engine's, which has the first bell, and those that only serve
the API."""

QUEUE = 64
"""Rings that are taken as one."""


class Doorbell:
    """This process's bell, and the way to ring the others'."""

    def __init__(self, cwd: Path) -> None:
        digest = hashlib.sha256(str(cwd.resolve()).encode()).hexdigest()[:32]
        self._names = [f"\0cuckoo-api-{digest}-{number}".encode() for number in range(BELLS)]
        self._others = list(self._names)
        self._bell = _socket()
        self._hand = _socket()

    def open(self, on_ring: Callable[[], None], *, engine: bool) -> None:
        """Listen; ``on_ring`` is called for each ring. The directory has one ``engine``."""
        for name in self._names[:1] if engine else self._names[1:]:
            try:
                self._bell.bind(name)
            except OSError:
                continue  # another process's
            self._others.remove(name)
            asyncio.get_running_loop().add_reader(self._bell, self._heard, on_ring)
            return
        log.warning("doorbell.none_free", hint="what other processes do is heard late")

    def close(self) -> None:
        """Be heard and rung no more."""
        if self._bell.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._bell)
        self._bell.close()
        self._hand.close()

    def _heard(self, on_ring: Callable[[], None]) -> None:
        try:
            for _ in range(QUEUE):
                self._bell.recv(1)
        except OSError:
            pass  # these were all
        on_ring()  # however often it rang

    def ring(self) -> None:
        """Wake the other processes, where there are any; the store has what they look for."""
        for name in self._others:
            try:
                self._hand.sendto(b"", name)
            except OSError:
                pass  # nobody is there, or a ring is waiting already


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
