"""The store: what is kept, behind one door."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.store.connection import Database
from cuckoo_api.store.deliveries import DeliveryStore
from cuckoo_api.store.events import EventStore
from cuckoo_api.store.machines import MachineStore
from cuckoo_api.store.samples import SampleStore
from cuckoo_api.store.tasks import TaskStore
from cuckoo_api.store.upgrade import upgrade


@dataclass(frozen=True, slots=True)
class Store:
    """Everything that is kept in the database."""

    tasks: TaskStore
    samples: SampleStore
    machines: MachineStore
    events: EventStore
    deliveries: DeliveryStore
    database: Database

    @classmethod
    async def open(cls, url: str, *, timeout: float = 60) -> Store:
        """Open ``sqlite:///path``, bring it to the newest schema and connect.

        ``timeout``: seconds to wait for another process that writes. Raises ConfigError for an
        address that cannot be served, and says why.
        """
        path = database_path(url)
        try:
            await asyncio.to_thread(upgrade, path, timeout)
            database = await Database.open(path, timeout=timeout)
        except (OSError, sqlite3.Error, sa.exc.DBAPIError) as exc:
            cause = exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc
            raise ConfigError([f"[database] connection: {path}: {cause}"]) from exc
        return cls(
            TaskStore(database),
            SampleStore(database),
            MachineStore(database),
            EventStore(database),
            DeliveryStore(database),
            database,
        )

    async def close(self) -> None:
        """Finish waiting writes and disconnect."""
        await self.database.close()


def database_path(url: str) -> Path:
    """The file of ``sqlite:///path``; ConfigError for an address that cannot be served."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        parsed = None
    if (
        parsed is None
        or parsed.get_backend_name() != "sqlite"
        or parsed.database in (None, "", ":memory:")
    ):
        raise ConfigError(
            [f"[database] connection: {url!r} is not served; expected sqlite:///PATH of a file"]
        )
    return Path(str(parsed.database))
