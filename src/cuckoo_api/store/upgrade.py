"""Brings a database file to the newest schema: all of it or nothing, one process at a time."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from cuckoo_api.model.errors import ConfigError, Unavailable
from cuckoo_api.store.schema import HEAD


def upgrade(path: Path, timeout: float) -> None:
    """Make the file, private to its owner, or bring it to HEAD. Blocks up to ``timeout`` s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _version(path) == HEAD:
        return
    with _alone(path.parent, timeout):
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        if _version(path) != HEAD:
            _migrate(path, timeout)


def _migrate(path: Path, timeout: float) -> None:
    # loaded here: it costs a third of a second, and most starts find nothing to do
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)
    with engine.connect() as connection:
        # said here: the driver would begin at the first INSERT, after the tables are made
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as exc:
            raise ConfigError(
                [f"[database] connection: {path} is of a newer version of the server: {exc}"]
            ) from exc
        connection.commit()


def _version(path: Path) -> str:
    """The migration that the file is at; empty for a new or an empty file."""
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


@contextmanager
def _alone(folder: Path, timeout: float) -> Iterator[None]:
    """Hold the folder against other processes that start at the same time.

    The database's own lock does not do: changing the journal's mode does not wait for it.
    """
    deadline = time.monotonic() + timeout
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        "Another process has been upgrading the database for too long"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
