"""Work for one connection's thread: what waits at the same time goes there in one hop.

The hop to a thread and back costs more than most statements: two wake-ups, and the interpreter's
lock handed over several times.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiosqlite

T = TypeVar("T")
J = TypeVar("J")

MOST = 64
"""Jobs in one hop; the others' answers must not wait too long for the first one's."""


class Connection(aiosqlite.Connection):
    """An aiosqlite connection whose thread also runs a whole function in one hop."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # a process that ends without closing the store must end; what was answered is on the disk
        self._thread.daemon = True

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """The function's result; it runs alone on the connection."""
        result: T = await self._execute(function, self._conn)  # type: ignore[no-untyped-call]  # aiosqlite leaves it untyped
        return result


async def connect(path: Path, timeout: float, pragmas: Sequence[str]) -> Connection:
    """Open a connection that begins no transaction by itself."""
    connection = Connection(lambda: sqlite3.connect(path, timeout=timeout, isolation_level=None))
    await connection
    try:
        for pragma in pragmas:
            await connection.execute_fetchall(f"PRAGMA {pragma}")
    except BaseException:
        await connection.close()
        raise
    return connection


class Hops(Generic[J]):
    """A connection and the jobs that wait for it.

    ``run`` gets the connection and some jobs, in its thread, and answers an outcome for each: a
    result, or the exception that its waiter shall get. What ``run`` raises, all of them get.
    ``after`` is called in the loop after each hop.
    """

    def __init__(
        self,
        connection: Connection,
        run: Callable[[sqlite3.Connection, list[J]], list[Any]],
        after: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._run = run
        self._after = after
        self._waiting: list[tuple[J, asyncio.Future[Any]]] = []
        self._work = asyncio.Event()
        self._closing = False
        self._loop = asyncio.create_task(self._serve(), name="store-hops")

    async def do(self, job: J) -> Any:
        """The job's outcome. A job that is cancelled before its hop is never done."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        self._work.set()
        return await done

    async def close(self) -> None:
        """Finish what waits, then disconnect."""
        self._closing = True
        self._work.set()
        await self._loop
        await self._connection.close()

    async def _serve(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._work.clear()
                await self._work.wait()
            batch = [pair for pair in self._waiting[:MOST] if not pair[1].done()]
            del self._waiting[:MOST]
            if batch:
                await self._hop(batch)

    async def _hop(self, batch: list[tuple[J, asyncio.Future[Any]]]) -> None:
        jobs = [job for job, _ in batch]
        try:
            outcomes = await self._connection.call(lambda connection: self._run(connection, jobs))
        except Exception as exc:  # noqa: BLE001 - every waiter must hear of it
            outcomes = [exc] * len(batch)
        if self._after is not None:
            self._after()
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            if done.done():
                continue
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)
