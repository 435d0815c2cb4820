"""Samples: one row for each SHA-256."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from cuckoo_api.model.sample import NewSample, Sample
from cuckoo_api.store.connection import Database, Statement, Transaction, compiled
from cuckoo_api.store.schema import samples, tasks

SampleKey = Literal["id", "md5", "sha1", "sha256"]

MAX_ID = (1 << 63) - 1

SAMPLE_COLUMNS = [samples.c[name] for name in Sample.__struct_fields__]

_insert = sqlite.insert(samples).values(
    {name: sa.bindparam(name) for name in NewSample.__struct_fields__}
)
# an update makes RETURNING answer for a row that was there already
_UPSERT = compiled(
    _insert.on_conflict_do_update(
        index_elements=["sha256"],
        set_={"ssdeep": sa.func.coalesce(samples.c.ssdeep, _insert.excluded.ssdeep)},
    ).returning(samples.c.id)
)
_SET_FUZZY_HASH = compiled(
    sa.update(samples)
    .where(samples.c.id == sa.bindparam("sample_id"))
    .values(ssdeep=sa.bindparam("fuzzy"))
)


def _find_sql(key: str) -> Statement:
    return compiled(
        sa.select(*SAMPLE_COLUMNS, tasks.c.id)
        .join_from(samples, tasks, tasks.c.sample_id == samples.c.id, isouter=True)
        .where(samples.c[key] == sa.bindparam("value"))
        .order_by(samples.c.id, tasks.c.id)
    )


_FIND = {key: _find_sql(key) for key in ("id", "md5", "sha1", "sha256")}


async def upsert_sample(transaction: Transaction, sample: NewSample) -> int:
    """The id of the sample's row, which is made if it is not there."""
    fields = {name: getattr(sample, name) for name in NewSample.__struct_fields__}
    [(sample_id,)] = await transaction.rows(_UPSERT, fields)
    return int(sample_id)


class SampleStore:
    """Looks samples up, and completes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: SampleKey, value: str | int) -> tuple[Sample, list[int]] | None:
        """The sample and the ids of its tasks, ascending; hashes in any case."""
        if isinstance(value, int):
            if not 0 < value <= MAX_ID:
                return None
        else:
            value = value.lower()
        rows = await self._database.rows(_FIND[key], {"value": value})
        if not rows:
            return None
        width = len(SAMPLE_COLUMNS)
        first = rows[0][:width]
        sample = Sample(**dict(zip(Sample.__struct_fields__, first, strict=True)))
        # two files with one MD5 are two rows: the older one answers
        return sample, [r[width] for r in rows if r[0] == sample.id and r[width] is not None]

    async def set_fuzzy_hash(self, sample_id: int, fuzzy: str) -> None:
        """Note the ssdeep that a sample was kept without."""

        async def operation(transaction: Transaction) -> None:
            await transaction.run(_SET_FUZZY_HASH, {"sample_id": sample_id, "fuzzy": fuzzy})

        await self._database.write(operation)
