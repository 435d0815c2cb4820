"""What receivers are still to be told of the ends of tasks.

A trigger writes the rows with the change itself (see ``triggers.py``): to the addresses that are
configured, and to the task's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from cuckoo_api.model.task import Status
from cuckoo_api.store.connection import Database, Statement, Transaction, compiled
from cuckoo_api.store.schema import deliveries, webhooks

CHUNK = 200
"""Deliveries read at a time."""

_by_id = deliveries.c.id == sa.bindparam("by_id")

_FIRST = compiled(sa.select(deliveries).order_by(deliveries.c.due, deliveries.c.id).limit(CHUNK))
_FORGET = compiled(sa.delete(deliveries).where(_by_id))
_PUT_OFF = compiled(
    sa.update(deliveries)
    .where(_by_id)
    .values(attempts=sa.bindparam("attempts"), due=sa.bindparam("due"))
)
_CLEAR = compiled(sa.delete(webhooks))
_ADD = compiled(sa.insert(webhooks).values(url=sa.bindparam("url")))


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One receiver that has not yet been told of one change."""

    id: int
    task_id: int
    status: Status
    url: str
    attempts: int
    """How often it was tried."""
    due: int
    """When to try, in Unix time."""


class DeliveryStore:
    """The deliveries that are still to be made; those of a deleted task are gone with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def configure(self, urls: Iterable[str]) -> None:
        """Tell these of every task that ends from now on."""
        wanted = dict.fromkeys(urls)

        async def operation(transaction: Transaction) -> None:
            await transaction.run(_CLEAR, {})
            for url in wanted:
                await transaction.run(_ADD, {"url": url})

        await self._database.write(operation)

    async def first(self) -> list[Delivery]:
        """Some of them, in the order in which they are due."""
        names = Delivery.__struct_fields__
        rows = await self._database.rows(_FIRST, {})
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [Delivery(**values | {"status": Status(values["status"])}) for values in found]

    async def forget(self, delivery: Delivery) -> None:
        """It was made, or given up."""
        await self._run(_FORGET, {"by_id": delivery.id})

    async def put_off(self, delivery: Delivery, due: int) -> None:
        """It failed once more; try it again then."""
        attempts = delivery.attempts + 1
        await self._run(_PUT_OFF, {"by_id": delivery.id, "attempts": attempts, "due": due})

    async def _run(self, statement: Statement, params: dict[str, Any]) -> None:
        async def operation(transaction: Transaction) -> None:
            await transaction.run(statement, params)

        await self._database.write(operation)
