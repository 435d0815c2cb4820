"""How a task is read, and the lists of tasks.

The database answers a task as one JSON object, and a chunk of a list as one text. The driver
gives up the interpreter's lock and takes it back for every row, and in a busy server waits for it
each time: one row of a hundred tasks was measured 15 times faster there than a hundred rows. And
a JSON text becomes tasks in one call, four times faster than rows do.
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from cuckoo_api.model.sample import Sample
from cuckoo_api.model.task import Guest, Status, Task
from cuckoo_api.store.connection import Database, Row, Statement, compiled
from cuckoo_api.store.samples import MAX_ID, SAMPLE_COLUMNS
from cuckoo_api.store.schema import samples, task_tags, tasks

CHUNK = 250
"""Rows read at a time while a long list streams."""

Part = Literal["all", "unfinished", "finished"]
"""The list's order is: without a date of completion, by id; then by that date and id."""


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks to list; None and empty mean any."""

    status: Status | None = None
    owner: str | None = None
    completed_after: str | None = None
    """Date as tasks have it; completed at that second or later."""
    sample: int | None = None
    target: str | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()
    """The task has all of these."""
    machine: str | None = None
    after_id: int | None = None


_NOTHING: Any = {}


class _StoredTask(Task, frozen=True, kw_only=True):
    """A task in the form that can be decoded: a union of a struct and ``{}`` cannot.

    The key of a guest or a sample that is not there is absent, and so it is ``{}`` here too.
    """

    guest: Guest = _NOTHING
    sample: Sample = _NOTHING


_decode_one = msgspec.json.Decoder(_StoredTask).decode
_decode_all = msgspec.json.Decoder(list[_StoredTask]).decode
_JSON = frozenset({"options", "tags", "errors", "guest"})
_FLAGS = frozenset({"memory", "enforce_timeout"})


def _value(name: str) -> sa.ColumnElement[Any]:
    column = tasks.c[name]
    if name in _FLAGS:
        return sa.func.json(sa.case((column, "true"), else_="false"))
    return sa.func.json(column) if name in _JSON else column


def _object(*extra: str) -> sa.ColumnElement[str]:
    values = {name: _value(name) for name in Task.__struct_fields__ if name not in _OPTIONAL}
    values |= {name: _OPTIONAL[name] for name in extra}
    # keys as text: what cannot vary is no parameter
    pairs: list[tuple[Any, Any]] = [
        (sa.literal_column(f"'{name}'"), value) for name, value in values.items()
    ]
    return sa.func.json_object(*(part for pair in pairs for part in pair))


_sample_pairs: list[tuple[Any, Any]] = [
    (sa.literal_column(f"'{column.name}'"), column) for column in SAMPLE_COLUMNS
]
_OPTIONAL: dict[str, sa.ColumnElement[Any]] = {
    "guest": _value("guest"),
    "sample": sa.func.json_object(*(part for pair in _sample_pairs for part in pair)),
}
_no_guest = tasks.c.guest == "{}"
_no_sample = samples.c.id.is_(None)

SELECT = sa.select(
    sa.case(
        (_no_guest & _no_sample, _object()),
        (_no_guest, _object("sample")),
        (_no_sample, _object("guest")),
        else_=_object("guest", "sample"),
    ).label("task")
).join_from(tasks, samples, tasks.c.sample_id == samples.c.id, isouter=True)
"""A text for each task, for :func:`task_of`."""


def task_of(row: Row) -> Task:
    """The task in a row of SELECT."""
    return _decode_one(row[0])


@functools.lru_cache(maxsize=256)
def _list_sql(names: frozenset[str], tags: int, part: Part) -> Statement:
    """A list's statement for one combination of filters."""
    where: dict[str, sa.ColumnElement[bool]] = {
        "status": tasks.c.status == sa.bindparam("status"),
        "owner": tasks.c.owner == sa.bindparam("owner"),
        "completed_after": tasks.c.completed_on >= sa.bindparam("completed_after"),
        "sample": tasks.c.sample_id == sa.bindparam("sample"),
        "target": tasks.c.target == sa.bindparam("target"),
        "category": tasks.c.category == sa.bindparam("category"),
        "machine": tasks.c.machine == sa.bindparam("machine"),
        "after_id": tasks.c.id > sa.bindparam("after_id"),
    }
    statement = SELECT.where(*(where[name] for name in sorted(names)))
    if tags:
        had = sa.select(sa.func.count()).where(
            task_tags.c.task_id == tasks.c.id,
            task_tags.c.tag.in_([sa.bindparam(f"tag{number}") for number in range(tags)]),
        )
        statement = statement.where(had.scalar_subquery() == tags)
    if part == "unfinished":
        statement = statement.where(
            tasks.c.completed_on.is_(None), tasks.c.id > sa.bindparam("last_id")
        )
    elif part == "finished":
        statement = statement.where(
            sa.tuple_(tasks.c.completed_on, tasks.c.id)
            > sa.tuple_(sa.bindparam("last_date"), sa.bindparam("last_id"))
        )
    chunk = (
        statement.order_by(tasks.c.completed_on.asc().nulls_first(), tasks.c.id)
        .limit(sa.bindparam("limit"))
        .offset(sa.bindparam("offset"))
        .subquery()
    )
    return compiled(sa.select(sa.func.group_concat(chunk.c.task)))


async def _chunk(
    database: Database,
    where: TaskFilter,
    limit: int,
    offset: int,
    part: Part,
    last: tuple[str, int],
) -> list[Task]:
    """One statement's worth of the list; ``last`` is the date and id to go on after."""
    params: dict[str, Any] = {
        name: getattr(where, name)
        for name in TaskFilter.__struct_fields__
        if name != "tags" and getattr(where, name) is not None
    }
    if any(isinstance(value, int) and abs(value) > MAX_ID for value in params.values()):
        return []
    names = frozenset(params)
    tags = dict.fromkeys(where.tags)
    params |= {f"tag{number}": tag for number, tag in enumerate(tags)}
    params |= {"limit": limit, "offset": min(offset, MAX_ID)}
    if part != "all":
        params["last_id"] = last[1]
    if part == "finished":
        params["last_date"] = last[0]
    rows = await database.rows(_list_sql(names, len(tags), part), params, slow=True)
    if not rows or rows[0][0] is None:
        return []
    # the statement says in which order; SQL does not promise that joining its rows keeps it
    return sorted(_decode_all(f"[{rows[0][0]}]"), key=_place)


def _place(task: Task) -> tuple[str, int]:
    return task.completed_on or "", task.id


async def each(
    database: Database, where: TaskFilter, limit: int | None, offset: int
) -> AsyncIterator[Task]:
    """The list, task by task, from chunks; each task once, also one completed meanwhile."""
    left = MAX_ID if limit is None else limit
    part: Part = "all"
    last = ("", 0)
    unfinished = array("q")  # ascending; eight bytes for a task is all that a long list costs
    while left > 0:
        size = min(CHUNK, left)
        chunk = await _chunk(database, where, size, offset, part, last)
        for task in chunk:
            if task.completed_on is None:
                unfinished.append(task.id)
            elif _holds(unfinished, task.id):
                continue
            left -= 1
            yield task
        offset = 0
        if len(chunk) == size:
            part = "unfinished" if chunk[-1].completed_on is None else "finished"
            last = (chunk[-1].completed_on or "", chunk[-1].id)
        elif part == "unfinished":
            part, last = "finished", ("", 0)
        else:
            return


def _holds(ids: array[int], wanted: int) -> bool:
    place = bisect_left(ids, wanted)
    return place < len(ids) and ids[place] == wanted
