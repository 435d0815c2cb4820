"""Tasks: submission, views, the queue, and every change of state."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import NewSample, Sample
from cuckoo_api.model.task import DATE_FORMAT, TRANSITIONS, Guest, NewTask, Status, Task, now_text
from cuckoo_api.store.database import Database, Row, Statement, Transaction, compiled
from cuckoo_api.store.machines import LOCK
from cuckoo_api.store.samples import MAX_ID, SAMPLE_COLUMNS, upsert_sample
from cuckoo_api.store.schema import samples, task_tags, tasks

CHUNK = 500
"""Rows read at a time while a long list streams."""


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


_FIELDS = [name for name in Task.__struct_fields__ if name != "sample"]
_JSON: dict[str, msgspec.json.Decoder[Any]] = {
    "options": msgspec.json.Decoder(dict[str, str]),
    "tags": msgspec.json.Decoder(list[str]),
    "errors": msgspec.json.Decoder(list[str]),
}
_GUEST = msgspec.json.Decoder(Guest)
_WIDTH = len(_FIELDS)

_select = sa.select(*(tasks.c[name] for name in _FIELDS), *SAMPLE_COLUMNS).join_from(
    tasks, samples, tasks.c.sample_id == samples.c.id, isouter=True
)
_by_id = tasks.c.id == sa.bindparam("by_id")

_GET = compiled(_select.where(_by_id))
_UNFINISHED = compiled(
    _select.where(tasks.c.status.in_(["running", "completed"])).order_by(tasks.c.id)
)
_COUNTS = compiled(sa.select(tasks.c.status, sa.func.count()).group_by(tasks.c.status))
_STORED = [
    *(name for name in NewTask.__struct_fields__ if name != "machine"),
    "wanted_machine",
    "machine",
    "status",
    "added_on",
]
_INSERT = compiled(
    sa.insert(tasks).values({name: sa.bindparam(name) for name in _STORED}).returning(tasks.c.id)
)
_INSERT_TAG = compiled(
    sa.insert(task_tags).values(task_id=sa.bindparam("task_id"), tag=sa.bindparam("tag"))
)
_TAKE = compiled(
    sa.update(tasks)
    .where(_by_id, tasks.c.status == "pending")
    .values(status="running", started_on=sa.bindparam("now"), machine=sa.bindparam("name"))
)
_STATE = compiled(
    sa.select(tasks.c.status, tasks.c.attempts, tasks.c.started_on, tasks.c.errors).where(_by_id)
)
_CHANGES = {
    name: compiled(sa.update(tasks).where(_by_id).values({name: sa.bindparam("value")}))
    for name in ("guest", "route", "errors", "attempts")
}
_MOVE = compiled(
    sa.update(tasks)
    .where(_by_id, tasks.c.status == sa.bindparam("source"))
    .values(status=sa.bindparam("target"))
)
_COMPLETE = compiled(
    sa.update(tasks)
    .where(_by_id)
    .values(completed_on=sa.bindparam("now"), duration=sa.bindparam("duration"))
)
_REWIND = compiled(
    sa.update(tasks)
    .where(_by_id)
    .values(
        machine=tasks.c.wanted_machine,
        started_on=sa.null(),
        completed_on=sa.null(),
        duration=-1,
        guest="{}",
        route=sa.null(),
    )
)


def _task(row: Row) -> Task:
    values = dict(zip(_FIELDS, row, strict=False))
    for name, decoder in _JSON.items():
        values[name] = decoder.decode(values[name])
    guest = values["guest"]
    values["guest"] = {} if guest == "{}" else _GUEST.decode(guest)
    values["memory"] = bool(values["memory"])
    values["enforce_timeout"] = bool(values["enforce_timeout"])
    values["status"] = Status(values["status"])
    if row[_WIDTH] is not None:
        values["sample"] = Sample(**dict(zip(Sample.__struct_fields__, row[_WIDTH:], strict=True)))
    return Task(**values)


@functools.lru_cache(maxsize=256)
def _list_sql(names: frozenset[str], tags: int, after: str) -> Statement:
    """A list's statement for one combination of filters; ``after`` is the page's beginning."""
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
    statement = _select.where(*(where[name] for name in sorted(names)))
    for number in range(tags):
        statement = statement.where(
            sa.exists().where(
                task_tags.c.task_id == tasks.c.id, task_tags.c.tag == sa.bindparam(f"tag{number}")
            )
        )
    later = tasks.c.id > sa.bindparam("last_id")
    if after == "null":
        statement = statement.where(tasks.c.completed_on.is_not(None) | later)
    elif after == "date":
        same = tasks.c.completed_on == sa.bindparam("last_date")
        statement = statement.where(
            (tasks.c.completed_on > sa.bindparam("last_date")) | (same & later)
        )
    return compiled(
        statement.order_by(tasks.c.completed_on.asc().nulls_first(), tasks.c.id)
        .limit(sa.bindparam("limit"))
        .offset(sa.bindparam("offset"))
    )


@functools.lru_cache(maxsize=64)
def _candidate_sql(tags: int) -> Statement:
    """The best pending task for a machine with this many tags."""
    strange = sa.exists().where(
        task_tags.c.task_id == tasks.c.id,
        task_tags.c.tag.not_in([sa.bindparam(f"tag{n}") for n in range(tags)])
        if tags
        else sa.true(),
    )
    return compiled(
        sa.select(tasks.c.id)
        .where(
            tasks.c.status == "pending",
            tasks.c.wanted_machine.in_(["", sa.bindparam("name"), sa.bindparam("label")]),
            tasks.c.platform.in_(["", sa.bindparam("platform")]),
            ~strange,
        )
        .order_by(tasks.c.priority.desc(), tasks.c.id)
        .limit(1)
    )


class TaskStore:
    """All tasks. A state changes only along the model's table, by compare-and-set."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- submit and look ----------------------------------------------------------------------

    async def submit(self, new: Sequence[NewTask], sample: NewSample | None = None) -> list[int]:
        """Keep the tasks, and the sample they share; their ids, once all is on the disk."""

        async def operation(transaction: Transaction) -> list[int]:
            sample_id = None if sample is None else await upsert_sample(transaction, sample)
            return [await _insert(transaction, task, sample_id) for task in new]

        return await self._database.write(operation)

    async def get(self, task_id: int) -> Task | None:
        """One task."""
        if not 0 < task_id <= MAX_ID:
            return None
        rows = await self._database.rows(_GET, {"by_id": task_id})
        return _task(rows[0]) if rows else None

    async def page(self, where: TaskFilter, *, limit: int | None, offset: int = 0) -> list[Task]:
        """Some tasks: completed ones last, by date; the rest first, by id."""
        return await self._page(where, -1 if limit is None else limit, offset, None)

    async def each(
        self, where: TaskFilter, *, limit: int | None = None, offset: int = 0
    ) -> AsyncIterator[Task]:
        """The same, one by one, without holding more than a chunk of them."""
        last: Task | None = None
        left = MAX_ID if limit is None else limit
        while left > 0:
            size = min(CHUNK, left)
            chunk = await self._page(where, size, offset if last is None else 0, last)
            for task in chunk:
                yield task
            if len(chunk) < size:
                return
            left -= size
            last = chunk[-1]

    async def _page(
        self, where: TaskFilter, limit: int, offset: int, last: Task | None
    ) -> list[Task]:
        params: dict[str, Any] = {
            name: getattr(where, name)
            for name in TaskFilter.__struct_fields__
            if name != "tags" and getattr(where, name) is not None
        }
        if any(isinstance(v, int) and abs(v) > MAX_ID for v in params.values()):
            return []
        names = frozenset(params)
        after = ""
        if last is not None:
            after = "null" if last.completed_on is None else "date"
            params |= {"last_id": last.id, "last_date": last.completed_on}
        params |= {f"tag{n}": tag for n, tag in enumerate(where.tags)}
        params |= {"limit": min(limit, MAX_ID), "offset": min(offset, MAX_ID)}
        rows = await self._database.rows(_list_sql(names, len(where.tags), after), params)
        return [_task(row) for row in rows]

    async def counts(self) -> dict[Status, int]:
        """How many tasks are in each state that any is in."""
        rows = await self._database.rows(_COUNTS, {})
        return {Status(status): number for status, number in rows}

    async def unfinished(self) -> list[Task]:
        """What runs or waits for its report; after a restart, what must be taken up again."""
        return [_task(row) for row in await self._database.rows(_UNFINISHED, {})]

    # -- change -------------------------------------------------------------------------------

    async def claim(self, machine: Machine) -> Task | None:
        """Lease the machine to the best pending task that fits it, in one transaction.

        The task is then ``running``. None, and nothing changed, when no task fits or the machine
        is leased already or in quarantine.
        """
        params: dict[str, Any] = {
            "name": machine.name,
            "label": machine.label,
            "platform": machine.platform,
            **{f"tag{n}": tag for n, tag in enumerate(machine.tags)},
        }
        candidate = _candidate_sql(len(machine.tags))
        if not await self._database.rows(candidate, params):
            return None  # the usual answer, without waiting for the writer

        async def operation(transaction: Transaction) -> Task | None:
            found = await transaction.rows(candidate, params)
            if not found:
                return None
            [(task_id,)] = found
            now = now_text()
            lock = {"by_name": machine.name, "task": task_id, "now": now}
            if not await transaction.run(LOCK, lock):
                return None
            await transaction.run(_TAKE, {"by_id": task_id, "now": now, "name": machine.name})
            return _task((await transaction.rows(_GET, {"by_id": task_id}))[0])

        return await self._database.write(operation)

    async def transition(
        self, task_id: int, source: Status, target: Status, *, error: str = ""
    ) -> bool:
        """Change the state if it is still ``source``. ValueError for a change the model forbids."""
        if target not in TRANSITIONS[source]:
            raise ValueError(f"a task never goes from {source} to {target}")
        return await self._database.write(
            functools.partial(_transition, task_id, source, target, error)
        )

    async def requeue(self, task_id: int, error: str, *, max_attempts: int) -> Status:
        """The infrastructure failed a running task: to the queue again, or to failed_analysis."""

        async def operation(transaction: Transaction) -> Status:
            state = await transaction.rows(_STATE, {"by_id": task_id})
            if not state:
                return Status.FAILED_ANALYSIS
            attempts = state[0][1] + 1
            target = Status.PENDING if attempts < max_attempts else Status.FAILED_ANALYSIS
            if not await _transition(task_id, Status.RUNNING, target, error, transaction):
                return Status(state[0][0])
            await transaction.run(_CHANGES["attempts"], {"by_id": task_id, "value": attempts})
            return target

        return await self._database.write(operation)

    async def add_error(self, task_id: int, text: str) -> None:
        """Append to the task's errors."""

        async def operation(transaction: Transaction) -> None:
            await _append_error(transaction, task_id, text)

        await self._database.write(operation)

    async def set_guest(self, task_id: int, guest: Guest) -> None:
        """Keep which machine ran the task, and when."""
        await self._set(task_id, "guest", msgspec.json.encode(guest).decode())

    async def set_route(self, task_id: int, route: str) -> None:
        """Keep which network route the task used."""
        await self._set(task_id, "route", route)

    async def _set(self, task_id: int, name: str, value: Any) -> None:
        async def operation(transaction: Transaction) -> None:
            await transaction.run(_CHANGES[name], {"by_id": task_id, "value": value})

        await self._database.write(operation)


async def _insert(transaction: Transaction, task: NewTask, sample_id: int | None) -> int:
    now = now_text()
    values = {name: getattr(task, name) for name in NewTask.__struct_fields__}
    values |= {
        "wanted_machine": task.machine,
        "options": json.dumps(task.options, ensure_ascii=False),
        "tags": json.dumps(task.tags, ensure_ascii=False),
        "clock": task.clock or now,
        "status": Status.PENDING,
        "added_on": now,
    }
    if sample_id is not None:
        values["sample_id"] = sample_id
    [(task_id,)] = await transaction.rows(_INSERT, values)
    for tag in task.tags:
        await transaction.run(_INSERT_TAG, {"task_id": task_id, "tag": tag})
    return int(task_id)


async def _transition(
    task_id: int, source: Status, target: Status, error: str, transaction: Transaction
) -> bool:
    move = {"by_id": task_id, "source": source, "target": target}
    if not await transaction.run(_MOVE, move):
        return False
    if target is Status.PENDING:
        await transaction.run(_REWIND, {"by_id": task_id})
    elif source in (Status.PENDING, Status.RUNNING):
        [(_, _, started_on, _)] = await transaction.rows(_STATE, {"by_id": task_id})
        now = now_text()
        done = {"by_id": task_id, "now": now, "duration": _seconds(started_on, now)}
        await transaction.run(_COMPLETE, done)
    if error:
        await _append_error(transaction, task_id, error)
    return True


async def _append_error(transaction: Transaction, task_id: int, text: str) -> None:
    state = await transaction.rows(_STATE, {"by_id": task_id})
    if state:
        errors = [*_JSON["errors"].decode(state[0][3]), text]
        value = json.dumps(errors, ensure_ascii=False)
        await transaction.run(_CHANGES["errors"], {"by_id": task_id, "value": value})


def _seconds(started_on: str | None, now: str) -> int:
    if started_on is None:
        return -1
    started, ended = (datetime.strptime(text, DATE_FORMAT) for text in (started_on, now))  # noqa: DTZ007 - both are UTC
    return int((ended - started).total_seconds())
