"""What is asked of a task after its submission: again, not any more, or to be forgotten."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from cuckoo_api.model.errors import Conflict
from cuckoo_api.model.task import TRANSITIONS, Status, now_text
from cuckoo_api.store.connection import Statement, Transaction, compiled
from cuckoo_api.store.schema import machines, samples, task_tags, tasks

BUSY = frozenset({Status.RUNNING, Status.COMPLETED})
"""A machine or a report worker has the task's folder in hand."""

_by_id = tasks.c.id == sa.bindparam("by_id")

_COPIED = (
    "category", "target", "sample_id", "wanted_machine", "package", "options", "timeout",
    "custom", "owner", "platform", "memory", "enforce_timeout", "clock", "tags", "demand",
    "callback",
)  # fmt: skip
_STATUS = compiled(sa.select(tasks.c.status, tasks.c.sample_id).where(_by_id))
_RECOVER = compiled(sa.update(tasks).where(_by_id).values(status=Status.RECOVERED.value))
_CANCEL = compiled(
    sa.update(tasks)
    .where(_by_id)
    .values(
        status=Status.CANCELLED.value,
        completed_on=sa.func.coalesce(tasks.c.completed_on, sa.bindparam("now")),
    )
)
_COPY = compiled(
    sa.insert(tasks)
    .from_select(
        [*_COPIED, "machine", "priority", "status", "added_on"],
        sa.select(
            *(tasks.c[name] for name in _COPIED),
            tasks.c.wanted_machine,
            sa.func.coalesce(sa.bindparam("priority"), tasks.c.priority),
            sa.literal(Status.PENDING.value),
            sa.bindparam("now"),
        ).where(_by_id),
    )
    .returning(tasks.c.id)
)
_COPY_TAGS = compiled(
    sa.insert(task_tags).from_select(
        ["task_id", "tag"],
        sa.select(sa.bindparam("new_id"), task_tags.c.tag).where(
            task_tags.c.task_id == sa.bindparam("by_id")
        ),
    )
)
_DELETE = compiled(sa.delete(tasks).where(_by_id))
_DELETE_SAMPLE = compiled(
    sa.delete(samples)
    .where(
        samples.c.id == sa.bindparam("sample"),
        ~sa.exists().where(tasks.c.sample_id == sa.bindparam("sample")),
    )
    .returning(samples.c.sha256)
)
TO_STOP = compiled(
    sa.select(tasks.c.id)
    .join_from(machines, tasks, machines.c.task_id == tasks.c.id)
    .where(machines.c.locked, tasks.c.status == Status.CANCELLED.value)
)
"""Cancelled tasks whose machine is still theirs."""


@functools.lru_cache(maxsize=16)
def outdated_sql(statuses: frozenset[Status]) -> Statement:
    """Tasks in these states that ended ``before``; those that never ran, were submitted then."""
    age = sa.func.coalesce(tasks.c.completed_on, tasks.c.added_on)
    return compiled(
        sa.select(tasks.c.id)
        .where(
            tasks.c.status.in_([sa.literal(status.value) for status in sorted(statuses)]),
            age < sa.bindparam("before"),
            tasks.c.id > sa.bindparam("after_id"),
        )
        .order_by(tasks.c.id)
        .limit(sa.bindparam("limit"))
    )


async def status_of(transaction: Transaction, task_id: int) -> tuple[Status, int | None] | None:
    """A task's state and its sample's id; None where there is no such task."""
    rows = await transaction.rows(_STATUS, {"by_id": task_id})
    return (Status(rows[0][0]), rows[0][1]) if rows else None


async def reschedule(transaction: Transaction, task_id: int, priority: int | None) -> int | None:
    """A new task like this one, which becomes ``recovered``; its id. Conflict while it runs."""
    found = await status_of(transaction, task_id)
    if found is None:
        return None
    status = found[0]
    if status is Status.RUNNING:
        raise Conflict("The task is running; cancel it first, or wait for its end")
    now = now_text()
    values: dict[str, Any] = {"by_id": task_id, "priority": priority, "now": now}
    [(new_id,)] = await transaction.rows(_COPY, values)
    await transaction.run(_COPY_TAGS, {"by_id": task_id, "new_id": new_id})
    await transaction.run(_RECOVER, {"by_id": task_id})
    return int(new_id)


async def cancel(transaction: Transaction, task_id: int) -> Status | None:
    """Make the task ``cancelled``; the state it was in. Conflict when that was a final one."""
    found = await status_of(transaction, task_id)
    if found is None:
        return None
    status = found[0]
    if Status.CANCELLED not in TRANSITIONS[status]:
        raise Conflict(f"The task is {status.value} already and cannot be cancelled")
    await transaction.run(_CANCEL, {"by_id": task_id, "now": now_text()})
    return status


async def delete(transaction: Transaction, task_id: int) -> str | None:
    """Forget the task, and its sample where no other task has it.

    The SHA-256 of a sample that is forgotten too, else empty; None where there is no such task.
    Conflict while it is in hand.
    """
    found = await status_of(transaction, task_id)
    if found is None:
        return None
    status, sample_id = found
    if status in BUSY:
        raise Conflict("The task is currently being processed, cannot delete")
    await transaction.run(_DELETE, {"by_id": task_id})
    if sample_id is None:
        return ""
    rows = await transaction.rows(_DELETE_SAMPLE, {"sample": sample_id})
    return str(rows[0][0]) if rows else ""
