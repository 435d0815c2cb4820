"""Takes guests' results: TCP, told apart by their address, or a unix socket for each guest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.results.session import BLOCK, ResultSession
from cuckoo_api.settings import ResultServerSection

log = structlog.get_logger()

WORKERS = 4
LAST_WORDS = 2.0
"""Seconds that an ended analysis' connections get to hand over what they have sent."""


class ResultServer:
    """One for the server; each analysis has a session while it runs."""

    def __init__(self, limits: ResultServerSection) -> None:
        self._limits = limits
        self._sessions: dict[str, ResultSession] = {}
        self._servers: list[asyncio.Server] = []
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="results")
        self._strangers = 0

    async def open(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Listen. Raises ConfigError when an address cannot be had, and says which."""
        faults: list[str] = []
        for host, port in dict.fromkeys(addresses):
            try:
                server = await asyncio.start_server(self._accept, host, port, limit=BLOCK)
            except OSError as exc:
                faults.append(
                    f"conf/cuckoo.conf [resultserver]: cannot listen on {host}:{port}: "
                    f"{exc.strerror or exc}; allowed: a free port on an address of this host"
                )
            else:
                self._servers.append(server)
        if faults:
            await self.close()
            raise ConfigError(faults)

    @property
    def ports(self) -> list[int]:
        """The ports that are listened on, in the order of the addresses."""
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    async def close(self) -> None:
        """Stop listening and end every session."""
        for server in self._servers:
            server.close()
        for session in list(self._sessions.values()):
            await session.close()
        self._servers.clear()
        self._pool.shutdown(wait=False)

    @asynccontextmanager
    async def session(
        self, task_id: int, folder: Path, *, ip: str = "", socket: Path | None = None
    ) -> AsyncIterator[ResultSession]:
        """Take one guest's results into ``folder`` until left.

        The guest is the one at ``ip``, or whoever connects to ``socket``. Connections that are
        still open at the end get a moment to deliver what the guest had sent.
        """
        session = ResultSession(task_id, folder, self._limits, self._pool)
        own: asyncio.Server | None = None
        if socket is not None:
            socket.unlink(missing_ok=True)
            own = await asyncio.start_unix_server(session.take, socket, limit=BLOCK)
            # whoever may enter the folder may connect: it is private to the guest's own QEMU
            socket.chmod(0o666)
        elif ip in self._sessions:
            raise ValueError(f"{ip} has a session already")
        else:
            self._sessions[ip] = session
        try:
            yield session
        finally:
            if own is not None and socket is not None:
                own.close()
                socket.unlink(missing_ok=True)
            else:
                del self._sessions[ip]
            await session.wait_idle(LAST_WORDS)
            await session.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        session = self._sessions.get(peer[0]) if peer else None
        if session is not None:
            session.take(reader, writer)
            return
        self._strangers += 1
        if self._strangers & (self._strangers - 1) == 0:  # 1, 2, 4, 8 …: a flood fills no log
            log.warning("results.stranger", address=peer and peer[0], seen=self._strangers)
        writer.transport.abort()
