"""What happened: each change of a task's or a machine's state is a row, with a rising id.

Those rows are written by triggers (see ``triggers.py``) in the transaction of the change, whoever
makes it, so that none is lost and none tells what did not happen. What no row tells of, the server
adds.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from cuckoo_api.store.connection import Database, Transaction, compiled
from cuckoo_api.store.samples import MAX_ID
from cuckoo_api.store.schema import events

CHUNK = 100
"""Events read at a time."""

_AFTER = compiled(
    sa.select(events.c.id, events.c.kind, events.c.data)
    .where(events.c.id > sa.bindparam("last"))
    .order_by(events.c.id)
    .limit(CHUNK)
)
_ADD = compiled(sa.insert(events).values(kind=sa.bindparam("kind"), data=sa.bindparam("data")))
_NEWEST = compiled(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0)))


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change."""

    id: int
    kind: str
    """``task``, ``machine``, ``disk`` or ``vpn``."""
    data: str
    """A JSON object, on one line."""


class EventStore:
    """The newest 10,000 events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, last: int) -> list[Event]:
        """The first of those that came after this id. Ids are without holes."""
        rows = await self._database.rows(_AFTER, {"last": min(last, MAX_ID)})
        return [Event(id=event_id, kind=kind, data=data) for event_id, kind, data in rows]

    async def newest(self) -> int:
        """The newest one's id; 0 before the first."""
        [(newest,)] = await self._database.rows(_NEWEST, {})
        return int(newest)

    async def add(self, kind: str, data: Mapping[str, object]) -> None:
        """Tell of something that is neither a task's nor a machine's."""
        values = {"kind": kind, "data": msgspec.json.encode(data).decode()}

        async def operation(transaction: Transaction) -> None:
            await transaction.run(_ADD, values)

        await self._database.write(operation)
