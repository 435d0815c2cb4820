"""Takes guests' results: TCP, told apart by their address, or a unix socket for each guest."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.results.connection import Connection
from cuckoo_api.results.session import ResultSession
from cuckoo_api.settings import ResultServerSection

log = structlog.get_logger()

WORKERS = 4
LAST_WORDS = 2.0
"""Seconds that an ended analysis' connections get to hand over what they have sent."""


class ResultServer:
    """One for the server; each analysis has a session while it runs."""

    def __init__(
        self, limits: ResultServerSection, *, on_kept: Callable[[int], object] = lambda size: None
    ) -> None:
        """``on_kept`` is told how many bytes were kept, as they come."""
        self._limits = limits
        self._on_kept = on_kept
        self._sessions: set[ResultSession] = set()
        self._by_address: dict[str, ResultSession] = {}
        self._servers: list[asyncio.Server] = []
        self._addresses: set[tuple[str, int]] = set()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="results")
        self.strangers = 0
        """Connections from addresses that no analysis is running at; each was closed at once."""

    def reconfigure(self, limits: ResultServerSection) -> None:
        """Keep to other limits, from the next session on."""
        self._limits = limits

    async def open(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Listen. Raises ConfigError when an address cannot be had, and says which."""
        faults = await self.also_open(addresses)
        if faults:
            await self.close()
            raise ConfigError(faults)

    async def also_open(self, addresses: Iterable[tuple[str, int]]) -> list[str]:
        """Listen there too, where it does not yet; what could not be had, in sentences."""
        faults: list[str] = []
        loop = asyncio.get_running_loop()
        for host, port in dict.fromkeys(a for a in addresses if a not in self._addresses):
            try:
                server = await loop.create_server(lambda: Connection(self._accept), host, port)
            except OSError as exc:
                faults.append(
                    f"conf/cuckoo.conf [resultserver]: cannot listen on {host}:{port}: "
                    f"{exc.strerror or exc}; allowed: a free port on an address of this host"
                )
            else:
                self._servers.append(server)
                self._addresses.add((host, port))
        return faults

    @property
    def ports(self) -> list[int]:
        """The ports that are listened on, in the order of the addresses."""
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    async def close(self) -> None:
        """Stop listening and end every session."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for session in list(self._sessions):
            await session.close()
        self._pool.shutdown(wait=False)

    @asynccontextmanager
    async def session(
        self, task_id: int, folder: Path, *, ip: str = "", socket: Path | None = None
    ) -> AsyncIterator[ResultSession]:
        """Take one guest's results into ``folder`` until left.

        The guest is the one at ``ip``, or whoever connects to ``socket``. When left, what the
        guest has sent is still taken, 2 s at most; then its connections are closed. Raises
        ValueError when the guest is not told, or is another session's.
        """
        session = ResultSession(task_id, folder, self._limits, self._pool, self._on_kept)
        address = _canonical(ip)
        own: asyncio.Server | None = None
        if socket is not None:
            own = await _listen(socket, session)
        elif not ip or address in self._by_address:
            raise ValueError(f"{ip} has a session already" if ip else "a guest without an address")
        else:
            self._by_address[address] = session
        self._sessions.add(session)
        try:
            yield session
        finally:
            try:
                await session.drain(LAST_WORDS)  # the door is open: connections may be on their way
            finally:
                if own is not None and socket is not None:
                    own.close()
                    socket.unlink(missing_ok=True)
                else:
                    del self._by_address[address]
                await session.close()
                self._sessions.discard(session)

    def _accept(self, connection: Connection) -> None:
        peer = connection.peer
        session = self._by_address.get(_canonical(peer))
        if session is not None:
            session.take(connection)
            return
        self.strangers += 1
        if self.strangers & (self.strangers - 1) == 0:  # 1, 2, 4, 8 …: a flood fills no log
            log.warning("results.stranger", address=peer, seen=self.strangers)
        connection.abort()


async def _listen(path: Path, session: ResultSession) -> asyncio.Server:
    """A unix socket for one guest, which belongs to the owner of the folder it is in.

    That is the user that the guest's hypervisor runs as. He may have put a link in our way:
    the change of owner does not follow it.
    """
    path.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Connection(session.take), path)
    os.chown(path, path.parent.stat().st_uid, -1, follow_symlinks=False)
    return server


def _canonical(address: str) -> str:
    """One spelling of an IP address; what is none stays as it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
