"""One analysis' results: how much there may be, what was refused, and when all has come."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from cuckoo_api.results.connection import Connection
from cuckoo_api.results.files import ResultFiles, write_all
from cuckoo_api.results.protocol import (
    Command,
    FileHeader,
    Refused,
    parse_command,
    parse_destination,
    parse_filepath,
    parse_pids,
)
from cuckoo_api.settings import ResultServerSection

log = structlog.get_logger()

T = TypeVar("T")
MAX_ERRORS = 20
MAX_REASON = 400
HEADER_TIMEOUT = 30.0
"""Seconds for a guest to say what a connection is for."""
SETTLE = 0.05
"""Seconds without a connection after which none is on its way any more."""
ROUNDS = 10
"""Turns of the event loop in which it takes the connections that wait in the kernel."""
QUIET = 0.1
"""Seconds without a byte after which a guest that is switched off has delivered everything."""
MAX_SHOT = 9_999

_SHOT = re.compile(r"shots/([0-9]{4})\.jpg", re.ASCII)


class ResultSession:
    """Made by :meth:`ResultServer.session`; lives as long as the analysis takes results."""

    def __init__(
        self,
        task_id: int,
        folder: Path,
        limits: ResultServerSection,
        pool: Executor,
        on_kept: Callable[[int], object],
    ) -> None:
        self.task_id = task_id
        self.log_closed = asyncio.Event()
        """The guest's log has ended: its analyzer is done, or gone."""
        self.errors: list[str] = []
        """What was refused or cut off, for the task's errors; bounded."""
        self.bytes_received = 0
        """Bytes that were kept, of all files together."""
        self.files = 0
        """Files that were made, the log and the streams of processes included."""
        self._files = ResultFiles(folder)
        self._limits = limits
        self._pool = pool
        self._on_kept = on_kept
        self._serving: dict[asyncio.Task[None], Connection] = {}
        self._log_opened = False
        self._refused = 0
        self._progress = 0
        self._writing = 0
        self._shot = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._serving)

    def take(self, connection: Connection) -> None:
        """Serve a new connection of this guest's."""
        self._progress += 1
        if len(self._serving) >= self._limits.max_connections:
            self.refuse(f"more than {self._limits.max_connections} connections at once")
            connection.abort()
            return
        self._idle.clear()
        task = asyncio.create_task(self._serve(connection), name=f"results-{self.task_id}")
        self._serving[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._serving[task]
        if not self._serving:
            self._idle.set()
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("results.failed", task_id=self.task_id, exc_info=fault)

    async def wait_idle(self, timeout: float, *, settle: float = SETTLE) -> bool:
        """Until no connection is open: the guest has sent all it had.

        ``settle`` seconds more are for connections that the guest has made and the server not
        yet taken. False when ``timeout`` s were not enough.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._idle.wait()
                    before = self._progress
                    await asyncio.sleep(settle)
                    if self._idle.is_set() and self._progress == before:
                        return True
        except TimeoutError:
            return False

    async def drain(self, timeout: float) -> None:
        """Until no connection is open, or nothing comes on those that are; at most ``timeout`` s.

        For a guest that is switched off: what it sent has arrived, but no end of stream has.
        """
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout):
                before = -1
                while not self._idle.is_set():
                    busy = self._writing or any(c.waiting for c in self._serving.values())
                    if not busy and self._progress == before:
                        return
                    before = self._progress
                    await asyncio.wait(self._serving, timeout=QUIET)
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Close every connection; what was read from it is kept."""
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    def refuse(self, reason: str) -> None:
        """Note something that was not taken. A flood of refusals fills neither log nor errors."""
        self._refused += 1
        if self._refused <= MAX_ERRORS:
            log.info("results.refused", task_id=self.task_id, reason=reason[:MAX_REASON])
            self.errors.append(f"Result server: {reason[:MAX_REASON]}")
            return
        more = self._refused - MAX_ERRORS
        self.errors[MAX_ERRORS:] = [f"Result server: {more} more of these"]
        if more & (more - 1) == 0:  # 1, 2, 4, 8 …
            log.info("results.refused", task_id=self.task_id, more=more)

    # -- one connection -------------------------------------------------------------------------

    async def _serve(self, connection: Connection) -> None:
        try:
            command, header = await self._header(connection)
            await self._receive(command, header, connection)
        except Refused as exc:
            self.refuse(str(exc))
        except EOFError:
            pass  # the guest hung up before it said anything
        except OSError as exc:
            self.refuse(_of_the_host(exc))
        finally:
            connection.abort()

    async def _header(self, connection: Connection) -> tuple[Command, FileHeader]:
        try:
            async with asyncio.timeout(HEADER_TIMEOUT):
                command = parse_command(await connection.line())
                return command, await self._destination(command, connection)
        except TimeoutError:
            raise Refused("a connection that did not say what it is for") from None

    async def _destination(self, command: Command, connection: Connection) -> FileHeader:
        if command.name == "LOG":
            if self._log_opened:
                raise Refused("a second log")
            self._log_opened = True
            return FileHeader("analysis.log")
        if command.name == "BSON":
            return FileHeader(f"logs/{command.number}.bson")
        destination = parse_destination(await connection.line())
        if command.number == 1:
            return FileHeader(destination)
        filepath = parse_filepath(await connection.line())
        return FileHeader(destination, filepath, parse_pids(await connection.line()))

    async def _receive(self, command: Command, header: FileHeader, connection: Connection) -> None:
        handle, destination = await self._create(header.destination)
        header = replace(header, destination=destination)
        truncated = False
        size = 0
        try:
            while data := await connection.read():
                self._progress += 1
                # counted before it is written: other connections count meanwhile
                kept = data[: self._room(size)]
                size += len(kept)
                self.bytes_received += len(kept)
                self._on_kept(len(kept))
                truncated = len(kept) < len(data)
                await self._hop(write_all, handle, kept)
                if truncated:
                    self.refuse(f"{header.destination} was cut after {size} bytes")
                    return
        except OSError:
            truncated = True
            raise
        finally:
            if command.name == "LOG":
                self.log_closed.set()
            listed = header if command.name == "FILE" else None
            await self._hop(lambda: self._files.finish(handle, listed, truncated=truncated))

    async def _create(self, destination: str) -> tuple[int, str]:
        """A new file's descriptor, and where it is: a picture takes the next free number."""
        if self.files >= self._limits.max_files:
            raise Refused(f"more than {self._limits.max_files} files")
        self.files += 1
        try:
            while True:
                try:
                    handle = await self._hop(self._files.create, destination, unused=os.close)
                except FileExistsError:
                    destination = self._next_shot(destination)
                else:
                    return handle, destination
        except (OSError, Refused):
            self.files -= 1
            raise

    def _next_shot(self, destination: str) -> str:
        """The place of a picture whose own is taken: the host takes pictures as well."""
        found = _SHOT.fullmatch(destination)
        if found is not None:
            self._shot = max(self._shot, int(found[1])) + 1
        if found is None or self._shot > MAX_SHOT:
            raise Refused(f"{destination} again")
        return f"shots/{self._shot:04}.jpg"

    def _room(self, size: int) -> int:
        """How many more bytes this file may have."""
        return min(
            self._limits.upload_max_size - size,
            self._limits.max_total_size - self.bytes_received,
        )

    async def _hop(
        self,
        function: Callable[..., T],
        *arguments: object,
        unused: Callable[[T], None] | None = None,
    ) -> T:
        """Run in the pool; a cancel waits, for the thread uses the file meanwhile.

        ``unused`` is called with the result that a cancelled caller will never see.
        """
        self._writing += 1
        work = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():  # also when cancelled again
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            if not work.exception() and unused is not None:
                unused(work.result())
            raise
        finally:
            self._writing -= 1


def _of_the_host(exc: OSError) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the host's disk is full"
    return f"the host could not write a file: {exc.strerror or exc}"
