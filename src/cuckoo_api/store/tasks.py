"""Tasks: submission, views, the queue, and every change of state."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import DATE_FORMAT, TRANSITIONS, Guest, NewTask, Status, Task, now_text
from cuckoo_api.store import lifecycle, listing
from cuckoo_api.store.claim import BEST_OF_EACH, Demand, best_for, demand, demand_of
from cuckoo_api.store.connection import Database, Transaction, compiled
from cuckoo_api.store.listing import SELECT, TaskFilter, task_of
from cuckoo_api.store.machines import LOCK
from cuckoo_api.store.samples import MAX_ID, upsert_sample
from cuckoo_api.store.schema import submits, task_tags, tasks

MAX_ERRORS = 100
"""Errors that a task keeps, the first ones; what goes on failing must not fill the database."""
MAX_ERROR = 4096
"""Characters of one error."""

_errors = msgspec.json.Decoder(list[str])
_by_id = tasks.c.id == sa.bindparam("by_id")

_GET = compiled(SELECT.where(_by_id))
_RUNNING = compiled(sa.select(tasks.c.id).where(tasks.c.status == "running").order_by(tasks.c.id))
_COMPLETED = compiled(
    sa.select(tasks.c.id).where(tasks.c.status == "completed").order_by(tasks.c.id)
)
_COUNTS = compiled(sa.select(tasks.c.status, sa.func.count()).group_by(tasks.c.status))
_STORED = [
    *(name for name in NewTask.__struct_fields__ if name != "machine"),
    "wanted_machine",
    "machine",
    "demand",
    "status",
    "added_on",
]
_INSERT = compiled(
    sa.insert(tasks).values({name: sa.bindparam(name) for name in _STORED}).returning(tasks.c.id)
)
_INSERT_TAG = compiled(
    sa.insert(task_tags).values(task_id=sa.bindparam("task_id"), tag=sa.bindparam("tag"))
)
_INSERT_SUBMIT = compiled(
    sa.insert(submits).values(added_on=sa.bindparam("now")).returning(submits.c.id)
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
_START = compiled(sa.update(tasks).where(_by_id).values(started_on=sa.bindparam("now")))
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

    async def submit_files(self, new: Sequence[tuple[NewTask, NewSample]]) -> list[int]:
        """Keep the tasks, each with a sample of its own: all of them or, on an error, none."""

        async def operation(transaction: Transaction) -> list[int]:
            return [
                await _insert(transaction, task, await upsert_sample(transaction, sample))
                for task, sample in new
            ]

        return await self._database.write(operation)

    async def submit_all(
        self, new: Sequence[tuple[NewTask, NewSample | None]]
    ) -> tuple[int, list[int]]:
        """Keep the tasks of one submission under a number of its own: all of them or none.

        The number, and the tasks' ids. There may be no task; the number is given all the same.
        """

        async def operation(transaction: Transaction) -> tuple[int, list[int]]:
            [(submit_id,)] = await transaction.rows(_INSERT_SUBMIT, {"now": now_text()})
            ids = []
            for task, sample in new:
                sample_id = None if sample is None else await upsert_sample(transaction, sample)
                task = msgspec.structs.replace(task, submit_id=submit_id)
                ids.append(await _insert(transaction, task, sample_id))
            return int(submit_id), ids

        return await self._database.write(operation)

    async def get(self, task_id: int) -> Task | None:
        """One task."""
        if not 0 < task_id <= MAX_ID:
            return None
        rows = await self._database.rows(_GET, {"by_id": task_id})
        return task_of(rows[0]) if rows else None

    async def page(self, where: TaskFilter, *, limit: int | None, offset: int = 0) -> list[Task]:
        """Some tasks: completed ones last, by date; the rest first, by id."""
        return [task async for task in self.each(where, limit=limit, offset=offset)]

    def each(
        self, where: TaskFilter, *, limit: int | None = None, offset: int = 0
    ) -> AsyncIterator[Task]:
        """The same, one by one, without holding more than a chunk of them."""
        return listing.each(self._database, where, limit, offset)

    async def counts(self) -> dict[Status, int]:
        """How many tasks are in each state that any is in."""
        rows = await self._database.rows(_COUNTS, {}, slow=True)
        return {Status(status): number for status, number in rows}

    async def outdated(
        self, before: str, statuses: frozenset[Status], *, after_id: int, limit: int
    ) -> list[int]:
        """The ids, ascending, of tasks in these states that ended before that date.

        Those that never ran count from their submission.
        """
        params = {"before": before, "after_id": after_id, "limit": limit}
        statement = lifecycle.outdated_sql(statuses)
        return [row[0] for row in await self._database.rows(statement, params, slow=True)]

    async def running(self) -> list[int]:
        """The ids of what a machine works on; after a restart, what must be taken up again."""
        return [row[0] for row in await self._database.rows(_RUNNING, {}, slow=True)]

    async def completed(self) -> list[int]:
        """The ids of what has been analysed and waits for its report, a first one or another."""
        return [row[0] for row in await self._database.rows(_COMPLETED, {}, slow=True)]

    async def to_stop(self) -> list[int]:
        """The ids of cancelled tasks whose machine still runs for them."""
        return [row[0] for row in await self._database.rows(lifecycle.TO_STOP, {})]

    # -- change -------------------------------------------------------------------------------

    async def demands(self) -> list[Demand]:
        """What the pending tasks ask for, each once: few, however many tasks there are."""
        rows = await self._database.rows(BEST_OF_EACH, {}, slow=True)
        return [demand_of(text) for text, _, _ in rows]

    async def claim(self, machine: Machine, shut: Collection[str] = frozenset()) -> Task | None:
        """Lease the machine to the best pending task that fits it, in one transaction.

        The task is then ``running``. None, and nothing changed, when no task fits or the machine
        is leased already or in quarantine. Tasks with a route in ``shut`` wait.
        """

        async def operation(transaction: Transaction) -> Task | None:
            task_id = best_for(machine, await transaction.rows(BEST_OF_EACH, {}), shut)
            now = now_text()
            lock = {"by_name": machine.name, "task": task_id, "now": now}
            if task_id is None or not await transaction.run(LOCK, lock):
                return None
            await transaction.run(_TAKE, {"by_id": task_id, "now": now, "name": machine.name})
            return task_of((await transaction.rows(_GET, {"by_id": task_id}))[0])

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

    async def reschedule(self, task_id: int, priority: int | None = None) -> int | None:
        """Submit the task once more, with its own priority or another; the new one's id.

        The old one becomes ``recovered``. None where it does not exist, Conflict while it runs.
        """
        return await self._database.write(
            lambda transaction: lifecycle.reschedule(transaction, task_id, priority)
        )

    async def cancel(self, task_id: int) -> Status | None:
        """Take the task out of the queue, or mark it to be stopped; the state that it was in.

        None where it does not exist, Conflict when it has come to an end.
        """
        return await self._database.write(
            lambda transaction: lifecycle.cancel(transaction, task_id)
        )

    async def delete(self, task_id: int) -> str | None:
        """Forget the task, and its sample when nothing else refers to it.

        The SHA-256 of a sample that went with it, else empty; None where the task does not
        exist, Conflict while it runs or its report is made.
        """
        return await self._database.write(
            lambda transaction: lifecycle.delete(transaction, task_id)
        )

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
    tags = list(dict.fromkeys(task.tags))
    values = {name: getattr(task, name) for name in NewTask.__struct_fields__}
    values |= {
        "wanted_machine": task.machine,
        "options": json.dumps(task.options, ensure_ascii=False),
        "tags": json.dumps(tags, ensure_ascii=False),
        "demand": demand(task),
        "clock": task.clock or now,
        "status": Status.PENDING,
        "added_on": now,
    }
    if sample_id is not None:
        values["sample_id"] = sample_id
    [(task_id,)] = await transaction.rows(_INSERT, values)
    for tag in tags:
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
    elif target is Status.RUNNING:
        await transaction.run(_START, {"by_id": task_id, "now": now_text()})
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
    errors = _errors.decode(state[0][3]) if state else []
    if not state or len(errors) >= MAX_ERRORS:
        return
    # the text may quote a guest: what is no Unicode becomes a question mark
    errors.append(text[:MAX_ERROR].encode("utf-8", "replace").decode())
    value = json.dumps(errors, ensure_ascii=False)
    await transaction.run(_CHANGES["errors"], {"by_id": task_id, "value": value})


def _seconds(started_on: str | None, now: str) -> int:
    if started_on is None:
        return -1
    started, ended = (datetime.strptime(text, DATE_FORMAT) for text in (started_on, now))  # noqa: DTZ007 - both are UTC
    return max(0, int((ended - started).total_seconds()))  # a clock may be set back
