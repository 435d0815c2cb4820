"""The connection: one writer with group commit, one reader, and how the schema gets there.

Statements are SQLAlchemy Core, compiled once to text for the dialect and run straight on the
driver: the async engine between them costs four fifths of the speed. A read is one statement in
one hop to the driver's thread. Writes that wait at the same time share one transaction, and so
one fsync; each stands in a savepoint of its own, so that one that fails takes no other with it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from cuckoo_api.model.errors import ConfigError, CuckooError, Unavailable
from cuckoo_api.store.schema import HEAD

if TYPE_CHECKING:
    from cuckoo_api.store.machines import MachineStore
    from cuckoo_api.store.samples import SampleStore
    from cuckoo_api.store.tasks import TaskStore

T = TypeVar("T")
Row = tuple[Any, ...]
Params = Mapping[str, Any]

_DIALECT = sqlite.dialect(paramstyle="named")
READERS = 2


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text with ``:name`` parameters, and the values of those that never change."""

    text: str
    constants: Params


def compiled(statement: sa.ClauseElement) -> Statement:
    """The statement in the driver's form. Do this once, not for each call."""
    form = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    constants = {name: value for name, value in form.params.items() if value is not None}
    return Statement(str(form), constants)


class Transaction:
    """What a write operation may do: statements inside the writer's transaction."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def rows(self, statement: Statement, params: Params) -> list[Row]:
        """Run one statement; all of its rows."""
        values = {**statement.constants, **params}
        return list(await self._connection.execute_fetchall(statement.text, values))  # type: ignore[arg-type]  # sqlite3.Row is a tuple here

    async def run(self, statement: Statement, params: Params) -> int:
        """Run one statement; the number of rows that it changed."""
        values = {**statement.constants, **params}
        async with self._connection.execute(statement.text, values) as cursor:
            return cursor.rowcount


@dataclass(slots=True)
class _Write:
    operation: Callable[[Transaction], Awaitable[Any]]
    done: asyncio.Future[Any]


class Database:
    """SQLite through aiosqlite. Another driver needs :meth:`rows` and :meth:`write`, no more."""

    def __init__(
        self, path: Path, writer: aiosqlite.Connection, readers: list[aiosqlite.Connection]
    ) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._turn = 0
        self._waiting: list[_Write] = []
        self._work = asyncio.Event()
        self._closing = False
        self._drain = asyncio.create_task(self._write_loop(), name="store-writer")

    @classmethod
    async def open(cls, path: Path, *, timeout: float) -> Self:
        """Bring the file to the newest schema and connect."""
        await asyncio.to_thread(_migrate, path)
        connections: list[aiosqlite.Connection] = []
        try:
            for _ in range(1 + READERS):
                # isolation_level None: this module says BEGIN, not the driver
                connection = await aiosqlite.connect(path, timeout=timeout, isolation_level=None)
                connections.append(connection)
                for pragma in (
                    "journal_mode=WAL",
                    "synchronous=FULL",
                    "foreign_keys=ON",
                    "temp_store=MEMORY",
                ):
                    await connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            for connection in connections:
                await connection.close()
            raise
        return cls(path, connections[0], connections[1:])

    async def close(self) -> None:
        """Finish the writes that wait, then disconnect."""
        self._closing = True
        self._work.set()
        await self._drain
        for connection in (self._writer, *self._readers):
            await connection.close()

    async def rows(self, statement: Statement, params: Params) -> list[Row]:
        """Read: one statement, one hop."""
        self._turn = (self._turn + 1) % len(self._readers)
        values = {**statement.constants, **params}
        try:
            return list(await self._readers[self._turn].execute_fetchall(statement.text, values))  # type: ignore[arg-type]  # sqlite3.Row is a tuple here
        except sqlite3.Error as exc:
            raise _translated(exc) from exc

    async def write(self, operation: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run the operation in a transaction; when this returns, what it did is on the disk."""
        if self._closing:
            raise Unavailable("The server is stopping")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(operation, done))
        self._work.set()
        return await done

    async def _write_loop(self) -> None:
        while not (self._closing and not self._waiting):
            await self._work.wait()
            self._work.clear()
            batch, self._waiting = self._waiting, []
            if batch:
                await self._commit(batch)
            if self._closing:
                self._work.set()

    async def _commit(self, batch: list[_Write]) -> None:
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            wanted = [write for write in batch if not write.done.cancelled()]
            results = [(write, await self._in_savepoint(write)) for write in wanted]
            await self._writer.execute("COMMIT")
        except Exception as exc:  # noqa: BLE001 - every waiter must hear of it
            if self._writer.in_transaction:
                await self._writer.execute("ROLLBACK")
            error = _translated(exc) if isinstance(exc, sqlite3.Error) else exc
            results = [(write, error) for write in batch]
        for write, result in results:
            if write.done.done():
                continue
            if isinstance(result, Exception):
                write.done.set_exception(result)
            else:
                write.done.set_result(result)

    async def _in_savepoint(self, write: _Write) -> Any:
        """The operation's result, or the error that undid it and nothing else."""
        await self._writer.execute("SAVEPOINT one")
        try:
            result = await write.operation(Transaction(self._writer))
        except Exception as exc:  # noqa: BLE001 - it is the waiter's, whatever it is
            await self._writer.execute("ROLLBACK TO one")
            result = _translated(exc) if isinstance(exc, sqlite3.Error) else exc
        await self._writer.execute("RELEASE one")
        return result


@dataclass(frozen=True, slots=True)
class Store:
    """Everything that is kept in the database."""

    tasks: TaskStore
    samples: SampleStore
    machines: MachineStore
    database: Database

    @classmethod
    async def open(cls, url: str, *, timeout: float = 60) -> Store:
        """Open ``sqlite:///path``; ``timeout`` seconds to wait for another process's write."""
        from cuckoo_api.store.machines import MachineStore
        from cuckoo_api.store.samples import SampleStore
        from cuckoo_api.store.tasks import TaskStore

        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            raise ConfigError(
                [f"[database] connection: {url!r} is not served yet; allowed: sqlite:///path"]
            )
        database = await Database.open(Path(parsed.database), timeout=timeout)
        return cls(TaskStore(database), SampleStore(database), MachineStore(database), database)

    async def close(self) -> None:
        """Finish waiting writes and disconnect."""
        await self.database.close()


def _migrate(path: Path) -> None:
    """Bring the file to HEAD. Alembic is loaded only where there is something to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _version(path) == HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
    path.chmod(0o600)


def _version(path: Path) -> str:
    if not path.exists():
        return ""
    connection = sqlite3.connect(path)
    try:
        [(version,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except (sqlite3.OperationalError, ValueError):
        return ""
    else:
        return str(version)
    finally:
        connection.close()


def _translated(exc: sqlite3.Error) -> CuckooError:
    text = str(exc)
    if "full" in text:
        return Unavailable("The disk that holds the database is full", log=text)
    if "locked" in text:
        return Unavailable("The database is busy; try again", log=text)
    return CuckooError("The database failed", log=text)
