"""The driver: one writer with group commit, two readers, and how a fault is told to the user.

Statements are SQLAlchemy Core, compiled once to text for the dialect and run straight on the
driver: the async engine between them costs four fifths of the speed. A read is one statement.
The writes that wait at the same time share one transaction, and so one fsync; each stands in a
savepoint of its own, so that one that fails takes no other with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from cuckoo_api.model.errors import BadInput, Conflict, CuckooError, Unavailable
from cuckoo_api.store.hops import Connection, Hops, connect

T = TypeVar("T")
Row = tuple[Any, ...]
Params = Mapping[str, Any]

_DIALECT = sqlite.dialect(paramstyle="named")
_NEWEST_EVENT = "SELECT max(id) FROM events"
_PRAGMAS = ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY")


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
    """What a write operation may await, and nothing else: statements of its transaction.

    On SQLite they answer at once, in the writer's thread; on a driver that waits for a server
    the same operation really waits.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def rows(self, statement: Statement, params: Params) -> list[Row]:
        """Run one statement; all of its rows."""
        values = {**statement.constants, **params}
        return self._connection.execute(statement.text, values).fetchall()

    async def run(self, statement: Statement, params: Params) -> int:
        """Run one statement; the number of rows that it changed."""
        values = {**statement.constants, **params}
        return self._connection.execute(statement.text, values).rowcount


Operation = Callable[[Transaction], Coroutine[Any, Any, T]]


@dataclass(frozen=True, slots=True)
class _Read:
    text: str
    values: Params


class Database:
    """SQLite through aiosqlite. Another driver needs :meth:`rows` and :meth:`write`, no more."""

    def __init__(self, path: Path, writer: Connection, quick: Connection, slow: Connection) -> None:
        self.path = path
        self.on_event: Callable[[], None] = lambda: None
        """Called after a commit that an event came with; see ``events.py``."""
        self._writer: Hops[Operation[Any]] = Hops(writer, self._commit, self._tell)
        self._quick = Hops(quick, _read)
        self._slow = Hops(slow, _read)
        self._newest_event: int | None = None
        self._told_event: int | None = None
        self._closing = False

    @classmethod
    async def open(cls, path: Path, *, timeout: float) -> Self:
        """Connect to a file that has the newest schema; ``timeout`` in seconds for its locks."""
        async with AsyncExitStack() as undo:
            connections = []
            for _ in range(3):
                connection = await connect(path, timeout, _PRAGMAS)
                undo.push_async_callback(connection.close)
                connections.append(connection)
            undo.pop_all()
        return cls(path, *connections)

    async def close(self) -> None:
        """Finish the writes that wait, then disconnect."""
        self._closing = True
        for hops in (self._writer, self._quick, self._slow):
            await hops.close()

    async def rows(self, statement: Statement, params: Params, *, slow: bool = False) -> list[Row]:
        """Read with one statement. Text that no database can hold matches no row.

        ``slow``: it may read many rows, and goes where the others do not wait for it.
        """
        hops = self._slow if slow else self._quick
        rows: list[Row] = await hops.do(_Read(statement.text, {**statement.constants, **params}))
        return rows

    async def write(self, operation: Operation[T]) -> T:
        """Run the operation in a transaction; when this returns, what it did is on the disk.

        Raises what the operation raised, then nothing of it was done; BadInput for a value that
        no database can hold; Unavailable when the disk is full, another process keeps the file
        locked past the timeout, or the store is closing.
        """
        if self._closing:
            raise Unavailable("The server is stopping")
        result: T = await self._writer.do(operation)
        return result

    def _commit(
        self, connection: sqlite3.Connection, operations: Sequence[Operation[Any]]
    ) -> list[Any]:
        outcomes = _transact(connection, operations)
        try:
            [(self._newest_event,)] = connection.execute(_NEWEST_EVENT).fetchall()
        except sqlite3.Error:
            pass  # a disk that fails; what was answered stands, and is told with the next commit
        return outcomes

    def _tell(self) -> None:
        if self._newest_event != self._told_event:
            self._told_event = self._newest_event
            self.on_event()


def _read(connection: sqlite3.Connection, reads: Sequence[_Read]) -> list[Any]:
    """Each statement's rows, or its error."""
    outcomes: list[Any] = []
    for read in reads:
        try:
            outcomes.append(connection.execute(read.text, read.values).fetchall())
        except UnicodeEncodeError:
            outcomes.append([])
        except Exception as exc:  # noqa: BLE001 - it is the waiter's, whatever it is
            outcomes.append(_told(exc))
    return outcomes


def _transact(connection: sqlite3.Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    """Commit the operations together; for each its result, or the error that undid it alone."""
    try:
        if connection.in_transaction:  # an earlier ROLLBACK failed, on a disk that failed
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [_in_savepoint(connection, operation) for operation in operations]
        connection.execute("COMMIT")
    except Exception as exc:  # noqa: BLE001 - it is every waiter's
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return [_told(exc)] * len(operations)
    return outcomes


def _in_savepoint(connection: sqlite3.Connection, operation: Operation[Any]) -> Any:
    connection.execute("SAVEPOINT one")
    try:
        outcome = _finished(operation(Transaction(connection)))
    except Exception as exc:  # it is the waiter's, whatever it is
        if not connection.in_transaction:
            raise  # a full disk: SQLite has undone the others' work as well
        connection.execute("ROLLBACK TO one")
        outcome = _told(exc)
    connection.execute("RELEASE one")
    return outcome


def _finished(operation: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait."""
    try:
        operation.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    operation.close()
    raise RuntimeError("a write operation awaited something else than its transaction")


def _told(exc: Exception) -> Exception:
    """The error as its waiter gets it; what is not the database's stays as it is."""
    if isinstance(exc, sqlite3.Error):
        told: Exception = translated(exc)
    elif isinstance(exc, OverflowError):
        told = BadInput("A number is too large to be kept; it must fit 64 bits", log=str(exc))
    elif isinstance(exc, UnicodeEncodeError):
        told = BadInput("A text is not valid Unicode and cannot be kept", log=str(exc))
    else:
        return exc
    told.__cause__ = exc
    return told


def translated(exc: sqlite3.Error) -> CuckooError:
    """The driver's error, in words for the user; the driver's own go to the log."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the rest tells variants apart
    log = f"{getattr(exc, 'sqlite_errorname', type(exc).__name__)}: {exc}"
    if code == sqlite3.SQLITE_FULL:
        return Unavailable("The disk that holds the database is full", log=log)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable("The database is busy; try again", log=log)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return Unavailable("The database cannot be written or read now", log=log)
    if code == sqlite3.SQLITE_CONSTRAINT:
        return Conflict("What this refers to is gone, or exists already", log=log)
    return CuckooError("The database failed", log=log)
