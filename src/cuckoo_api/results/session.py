"""One analysis' results: where they go, how much there may be, and what was refused."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from cuckoo_api.results.protocol import (
    MAX_LINE,
    Command,
    FileHeader,
    Refused,
    parse_command,
    parse_destination,
    parse_pids,
    text_of,
)
from cuckoo_api.settings import ResultServerSection

log = structlog.get_logger()

T = TypeVar("T")
BLOCK = 64 << 10
MAX_ERRORS = 20
HEADER_TIMEOUT = 30.0
"""Seconds for a guest to say what a connection is for."""


class ResultSession:
    """Made by :meth:`ResultServer.session`; lives as long as the analysis takes results."""

    def __init__(
        self, task_id: int, folder: Path, limits: ResultServerSection, pool: Executor
    ) -> None:
        self.task_id = task_id
        self.folder = folder
        self.log_closed = asyncio.Event()
        """The guest's log has ended: its analyzer is done, or gone."""
        self.errors: list[str] = []
        """What was refused or cut off, for the task's errors; bounded."""
        self.bytes_received = 0
        self.files = 0
        self._limits = limits
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()
        self._log_opened = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._tasks)

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection of this guest's."""
        if len(self._tasks) >= self._limits.max_connections:
            self.refuse(f"more than {self._limits.max_connections} connections at once")
            writer.transport.abort()
            return
        self._idle.clear()
        task = asyncio.create_task(self._serve(reader, writer), name=f"results-{self.task_id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def wait_idle(self, timeout: float) -> bool:
        """Until no connection is open, at most ``timeout`` s: the guest has sent all it had."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close every connection; what has arrived of it is kept."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def refuse(self, reason: str) -> None:
        """Note something that was not taken."""
        log.info("results.refused", task_id=self.task_id, reason=reason)
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(f"Result server: {reason}")

    # -- one connection -------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEADER_TIMEOUT):
                command = parse_command(await _line(reader))
                header = await self._header(command, reader)
            await self._receive(command, header, reader)
        except Refused as exc:
            self.refuse(str(exc))
        except TimeoutError:
            self.refuse("a connection that did not say what it is for")
        except (ConnectionError, EOFError):
            pass  # the guest hung up: what came is kept
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.refuse("the host's disk is full")
        finally:
            writer.transport.abort()

    async def _header(self, command: Command, reader: asyncio.StreamReader) -> FileHeader:
        if command.name == "LOG":
            if self._log_opened:
                raise Refused("a second log")
            self._log_opened = True
            return FileHeader("analysis.log", "", ())
        if command.name == "BSON":
            return FileHeader(f"logs/{command.number}.bson", "", ())
        destination = parse_destination(await _line(reader))
        if command.number == 1:
            return FileHeader(destination, "", ())
        filepath = text_of(await _line(reader))
        return FileHeader(destination, filepath, parse_pids(await _line(reader)))

    async def _receive(
        self, command: Command, header: FileHeader, reader: asyncio.StreamReader
    ) -> None:
        if self.files >= self._limits.max_files:
            raise Refused(f"more than {self._limits.max_files} files")
        self.files += 1
        try:
            handle = await self._hop(self._create, header.destination)
        except FileExistsError:
            raise Refused(f"{header.destination} again") from None
        size = 0
        truncated = False
        try:
            while data := await reader.read(BLOCK):
                room = self._room(size)
                if len(data) > room:
                    truncated = True
                    self.refuse(f"{header.destination} was cut after {size + room} bytes")
                    data = data[:room]
                await self._hop(_write_all, handle, data)
                size += len(data)
                self.bytes_received += len(data)
                if truncated:
                    return
        finally:
            os.close(handle)
            if command.name == "LOG":
                self.log_closed.set()
            elif command.name == "FILE":
                self._record(header, size, truncated=truncated)

    def _room(self, size: int) -> int:
        """How many more bytes this file may have."""
        return min(
            self._limits.upload_max_size - size,
            self._limits.max_total_size - self.bytes_received,
        )

    def _create(self, destination: str) -> int:
        """A new file, made relative to the opened folder: no link in the way is followed."""
        folder, _, name = destination.rpartition("/")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        root = os.open(self.folder / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return os.open(name, flags, 0o640, dir_fd=root)
        finally:
            os.close(root)

    def _record(self, header: FileHeader, size: int, *, truncated: bool) -> None:
        """One line of files.json: short, so it is written here and now."""
        entry: dict[str, Any] = {
            "path": header.destination,
            "filepath": header.filepath or None,
            "pids": list(header.pids),
            "size": size,
        }
        if truncated:
            entry["truncated"] = True
        with (self.folder / "files.json").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    async def _hop(self, function: Callable[..., T], *arguments: object) -> T:
        """Run in the pool; a cancel waits, for the thread uses the file meanwhile."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, function, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as exc:
        if not exc.partial:
            raise EOFError from None
        raise Refused("a line without an end") from None
    except asyncio.LimitOverrunError:
        line = b""
    if not 0 < len(line) <= MAX_LINE:
        raise Refused(f"a line of more than {MAX_LINE} bytes")
    return line


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
