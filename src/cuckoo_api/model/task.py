"""A task: what was submitted, what became of it, and which changes of state are allowed.

Dates are text, ``YYYY-MM-DD HH:MM:SS`` in UTC: the form in which the API answers them, and one
that sorts.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any

import msgspec

from cuckoo_api.model.sample import Sample

DATE_FORMAT = "%Y-%m-%d %H:%M:%S"


def now_text() -> str:
    """The present second, as tasks and machines keep it."""
    return datetime.now(UTC).strftime(DATE_FORMAT)


class Status(enum.StrEnum):
    """Where a task is on its way."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    REPORTED = "reported"
    RECOVERED = "recovered"
    CANCELLED = "cancelled"
    FAILED_ANALYSIS = "failed_analysis"
    FAILED_PROCESSING = "failed_processing"
    FAILED_REPORTING = "failed_reporting"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELLED, Status.RECOVERED}),
    # back to PENDING: the infrastructure failed, another machine tries again
    Status.RUNNING: frozenset(
        {Status.PENDING, Status.COMPLETED, Status.FAILED_ANALYSIS, Status.CANCELLED}
    ),
    Status.COMPLETED: frozenset(
        {
            Status.REPORTED,
            Status.FAILED_PROCESSING,
            Status.FAILED_REPORTING,
            Status.CANCELLED,
            Status.RECOVERED,
        }
    ),
    # back to COMPLETED: processing and reporting run again
    Status.REPORTED: frozenset({Status.COMPLETED, Status.RECOVERED}),
    Status.FAILED_PROCESSING: frozenset({Status.COMPLETED, Status.RECOVERED}),
    Status.FAILED_REPORTING: frozenset({Status.COMPLETED, Status.RECOVERED}),
    Status.FAILED_ANALYSIS: frozenset({Status.RECOVERED}),
    Status.CANCELLED: frozenset({Status.RECOVERED}),
    Status.RECOVERED: frozenset(),
}
"""Every allowed change. The store refuses all others."""

FINAL = frozenset(Status) - {Status.PENDING, Status.RUNNING, Status.COMPLETED}
"""States that a task leaves only when somebody asks for it."""


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that ran the task, as it was then."""

    name: str
    label: str
    manager: str
    started_on: str | None = None
    shutdown_on: str | None = None
    status: str = ""
    """``starting``, ``running``, ``stopped``."""
    exit_address: str | None = None
    """Where its traffic came from, as the page saw it that its route's probe asks."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the API shows it, field by field."""

    id: int
    category: str
    """``file``, ``url`` or ``archive``."""
    target: str
    machine: str = ""
    """Name or label that was asked for, then the name of the machine that took it."""
    package: str = ""
    options: dict[str, str] = {}
    timeout: int = 0
    """Seconds; 0 means the configured default."""
    priority: int = 1
    custom: str = ""
    owner: str = ""
    platform: str = ""
    memory: bool = False
    enforce_timeout: bool = False
    clock: str | None = None
    tags: list[str] = []
    status: Status = Status.PENDING
    added_on: str
    started_on: str | None = None
    completed_on: str | None = None
    duration: int = -1
    """Seconds from start to completion; -1 until completed."""
    sample_id: int | None = None
    submit_id: int | None = None
    route: str | None = None
    processing: str | None = None
    guest: Guest | dict[str, Any] = {}
    """``{}`` until a machine was started for it."""
    errors: list[str] = []
    sample: Sample | dict[str, Any] = {}
    """``{}`` for a URL."""


class NewTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a submission asks for, checked."""

    category: str
    target: str
    sample_id: int | None = None
    machine: str = ""
    package: str = ""
    options: dict[str, str] = {}
    timeout: int = 0
    priority: int = 1
    custom: str = ""
    owner: str = ""
    platform: str = ""
    memory: bool = False
    enforce_timeout: bool = False
    clock: str | None = None
    """None means the moment of submission."""
    tags: list[str] = []
    submit_id: int | None = None
    callback: str = ""
    """Whom to tell of its end. No view shows it: such an address is often a secret itself."""
