"""The queue: which pending task a machine gets.

What a task asks of a machine (a name or label, a platform, tags) is one column, ``demand``, and
the queue's index begins with it. Tasks are many and demands are few: the best task for a machine
is looked up demand by demand, and a hundred thousand tasks that this machine cannot serve cost
no more than one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import NewTask
from cuckoo_api.store.connection import Row, compiled
from cuckoo_api.store.schema import tasks

_pending = tasks.c.status == "pending"


class Demand(NamedTuple):
    """What some waiting tasks ask of a machine; empty means any."""

    machine: str
    """A name or a label."""
    platform: str
    tags: frozenset[str]
    route: str = ""
    """The word for it; empty: the default. One that is down is no machine's to serve."""

    def fits(self, machine: Machine) -> bool:
        """Whether the machine may run them."""
        return (
            self.machine in ("", machine.name, machine.label)
            and self.platform in ("", machine.platform)
            and self.tags.issubset(machine.tags)
        )


demand_of = msgspec.json.Decoder(Demand).decode
"""A demand from its text."""


def demand(task: NewTask) -> str:
    """What the task asks of a machine, the same text for the same demand."""
    asked: list[object] = [task.machine, task.platform, sorted(set(task.tags))]
    if route := task.options.get("route"):
        asked.append(route)
    return json.dumps(asked, ensure_ascii=False)


def _smallest(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[str]:
    found = sa.select(tasks.c.demand).where(_pending, *where)
    return found.order_by(tasks.c.demand).limit(1).scalar_subquery()


def _best_of_each() -> sa.Select[tuple[str, int, int]]:
    kinds = sa.select(_smallest().label("demand")).cte("kinds", recursive=True)
    following = _smallest(tasks.c.demand > kinds.c.demand)
    kinds = kinds.union_all(sa.select(following).where(kinds.c.demand.is_not(None)))
    first = (
        sa.select(tasks.c.id)
        .where(_pending, tasks.c.demand == kinds.c.demand)
        .order_by(tasks.c.priority.desc(), tasks.c.id)
        .limit(1)
        .correlate(kinds)
        .scalar_subquery()
    )
    best = tasks.alias("best")
    return sa.select(kinds.c.demand, best.c.priority, best.c.id).join_from(
        kinds, best, best.c.id == first
    )


BEST_OF_EACH = compiled(_best_of_each())
"""For every demand in the queue: its text, and its best task's priority and id."""


def best_for(
    machine: Machine, found: Iterable[Row], shut: Collection[str] = frozenset()
) -> int | None:
    """The id of the best task for the machine among rows of BEST_OF_EACH, but for shut routes."""
    asked = ((demand_of(text), prio, task_id) for text, prio, task_id in found)
    fitting = [
        (-prio, task_id)
        for wanted, prio, task_id in asked
        if wanted.fits(machine) and wanted.route not in shut
    ]
    return min(fitting)[1] if fitting else None
