"""The database as a file: copied while it is in use, and looked at for damage."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from cuckoo_api.model.errors import Unavailable
from cuckoo_api.store.schema import HEAD

MAX_FAULTS = 10
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database; of another database, they would ruin it."""


def copy_database(source: Path, target: Path) -> None:
    """Copy the database as it is at one moment, to a new private file. Blocks; writers do not wait.

    Raises Unavailable where it cannot be read or written.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with _told(source), closing(_read_only(source)) as old, closing(sqlite3.connect(target)) as new:
        # in one step, and so in one read transaction: what is written meanwhile is not in it
        old.backup(new, pages=-1)


def database_faults(path: Path) -> list[str]:
    """What SQLite finds wrong with the file, and with its references; empty where all is well.

    Reads all of it. Raises Unavailable where it cannot be opened.
    """
    try:
        with closing(_read_only(path)) as connection:
            found = connection.execute(f"PRAGMA integrity_check({MAX_FAULTS})").fetchall()
            lost = connection.execute("PRAGMA foreign_key_check").fetchmany(MAX_FAULTS)
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise Unavailable(f"{path}: {exc}") from exc
        return [str(exc)]
    faults = [str(line) for (line,) in found if line != "ok"]
    return faults + [f"row {row} of {table} refers to one of {to} that is gone"
                     for table, row, to, _ in lost]  # fmt: skip


def pending_migration(path: Path) -> str:
    """What the next start of the server will do to the file's schema; empty where nothing.

    Raises Unavailable where the file cannot be read, or is of a newer server.
    """
    with _told(path), closing(_read_only(path)) as connection:
        try:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.OperationalError as exc:
            if "no such table" not in str(exc):
                raise
            rows = []
    version = str(rows[0][0]) if rows else ""
    if version > HEAD:
        raise Unavailable(f"{path}: schema {version} is of a newer server; this one knows {HEAD}")
    return "" if version == HEAD else f"from schema {version or 'none'} to {HEAD}"


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=10)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise Unavailable(f"{path}: {exc}") from exc
