"""The server's end of the rooter's socket: one connection, which holds what was asked for open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.network.rooter.commands import (
    MAX_LINE,
    Answer,
    Command,
    Disable,
    Enable,
    Guard,
    Hello,
    Known,
    Peer,
    Peers,
    Refused,
    Service,
    decode_answer,
    encode,
)

PATIENCE = 10.0
"""Seconds for one answer: the rooter starts a program or two for it."""


class RooterUnavailable(CuckooError):
    """Nobody answers at the rooter's socket, or it does not let us in."""


class RooterRefused(CuckooError):
    """The rooter did not do it, and says why."""


class RooterClient:
    """Connects when it is first asked. When the connection ends, so does all that it had opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._guards: dict[str, list[Service]] = {}

    async def close(self) -> None:
        """Hang up: the rooter shuts what was open."""
        writer = self._streams[1] if self._streams is not None else None
        await self._hang_up()
        if writer is not None:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def hello(self) -> asyncio.Event:
        """Raise RooterUnavailable unless somebody is there. It is set when the connection ends."""
        async with self._lock:
            await self._exchange(Hello())
            return self._lost

    async def guard(self, interface: str, services: Sequence[Service]) -> None:
        """Let a network's guests reach these services of the host; again after a lost connection.

        Raises RooterUnavailable, and RooterRefused for a network that is not the rooter's.
        """
        self._guards[interface] = list(services)
        await self._ask(Guard(interface, list(services)))

    async def enable(self, guest: str, interface: str, route: str) -> asyncio.Event:
        """Give a guest its route. What is returned is set when the connection that holds it ends.

        Raises RooterUnavailable, and RooterRefused for a route that cannot be given.
        """
        async with self._lock:
            await self._exchange(Enable(guest, interface, route))
            return self._lost

    async def disable(self, guest: str) -> None:
        """Take its route. Raises nothing: where nobody answers, it is shut already, or will be."""
        with contextlib.suppress(RooterUnavailable, RooterRefused):
            await self._ask(Disable(guest))

    async def peers(self, vpn: str) -> list[Peer]:
        """What WireGuard knows. Raises RooterUnavailable and RooterRefused."""
        answer = await self._ask(Peers(vpn))
        return answer.peers if isinstance(answer, Known) else []

    async def _ask(self, command: Command) -> Answer:
        async with self._lock:
            return await self._exchange(command)

    async def _exchange(self, command: Command) -> Answer:
        if self._streams is None:
            await self._connect()
        answer = await self._turn(command)
        if isinstance(answer, Refused):
            raise RooterRefused(answer.reason)
        return answer

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                self._streams = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
        except (OSError, TimeoutError) as exc:
            reason = getattr(exc, "strerror", None) or "it does not answer"
            raise RooterUnavailable("Rooter not available", log=f"{self._path}: {reason}") from exc
        self._lost = asyncio.Event()
        for interface, services in self._guards.items():
            await self._turn(Guard(interface, services))

    async def _turn(self, command: Command) -> Answer:
        if self._streams is None:
            raise RooterUnavailable("Rooter not available", log="it has hung up")
        reader, writer = self._streams
        try:
            async with asyncio.timeout(PATIENCE):
                if self._watch is not None:
                    self._watch.cancel()
                    await asyncio.wait({self._watch})
                    self._watch = None
                writer.write(encode(command))
                await writer.drain()
                answer: Answer = decode_answer(await reader.readuntil())
        except (
            *(OSError, EOFError, ValueError, TimeoutError),
            *(asyncio.LimitOverrunError, msgspec.MsgspecError),
        ) as exc:
            await self._hang_up()
            raise RooterUnavailable("Rooter not available", log=str(exc)) from exc
        except asyncio.CancelledError:
            # its answer would be taken for the next command's
            await self._hang_up()
            raise
        self._watch = asyncio.create_task(self._until_lost(reader), name="rooter-client")
        return answer

    async def _until_lost(self, reader: asyncio.StreamReader) -> None:
        """Nothing comes unasked: what does is the end."""
        with contextlib.suppress(OSError):
            await reader.read(1)
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
        self._watch = None
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        self._lost.set()
