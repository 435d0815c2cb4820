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
SHARE = 20
"""Of these, for one receiver."""

_by_id = deliveries.c.id == sa.bindparam("by_id")


def _first() -> sa.Select[Any]:
    url = deliveries.c.url
    # up to the slash after the host, as Delivery.receiver has it
    receiver = sa.func.substr(url, 1, 7 + sa.func.instr(sa.func.substr(url + "/", 9), "/"))
    place = sa.func.row_number().over(
        partition_by=receiver, order_by=(deliveries.c.due, deliveries.c.id)
    )
    ranked = sa.select(deliveries, place.label("place")).subquery()
    return (
        sa.select(*(ranked.c[column.name] for column in deliveries.c))
        .where(ranked.c.place <= SHARE)
        .order_by(ranked.c.place, ranked.c.due, ranked.c.id)
        .limit(CHUNK)
    )


_FIRST = compiled(_first())
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

    @property
    def receiver(self) -> str:
        """Whom the address leads to: its scheme, host and port."""
        return "/".join(self.url.split("/", 3)[:3])


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
        """Some of each receiver's, in the order in which they are due.

        However many one has, the others' are there too.
        """
        names = Delivery.__struct_fields__
        rows = await self._database.rows(_FIRST, {})
        found = [dict(zip(names, row, strict=True)) for row in rows]
        all_of_them = (Delivery(**v | {"status": Status(v["status"])}) for v in found)
        return sorted(all_of_them, key=lambda delivery: (delivery.due, delivery.id))

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
