"""What a worker process is told and what it answers; plain values, as JSON on its pipes."""

from __future__ import annotations

from typing import Any

import msgspec

import cuckoo_api
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import Sample
from cuckoo_api.model.task import Guest, Task

MAX_MESSAGES = 200
MAX_MESSAGE = 1000


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one analysis that its folder does not hold or that could be forged there."""

    category: str
    target: str
    info: dict[str, Any]
    filename: str = ""
    """The archive's member, for the category ``archive``."""
    sample: Sample | None = None
    task_errors: list[str] = []
    guest_ip: str = ""
    resultserver_ip: str = ""
    resultserver_port: int = 0

    @property
    def name(self) -> str:
        """The file name as the client gave it."""
        return (self.filename or self.target).replace("\\", "/").rpartition("/")[2]

    @classmethod
    def of(cls, task: Task, machine: Machine | None) -> Job:
        """The facts of a task and of the machine that ran it."""
        return cls(
            category=task.category,
            target=task.target,
            info=_info(task, machine),
            filename=task.options.get("filename", "") if task.category == "archive" else "",
            sample=task.sample if isinstance(task.sample, Sample) else None,
            task_errors=list(task.errors),
            guest_ip=machine.ip if machine else "",
            resultserver_ip=machine.resultserver_ip if machine else "",
            resultserver_port=machine.resultserver_port if machine else 0,
        )


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Some steps of a report, in order; a worker is asked for those of one report only."""

    folder: str
    """The analysis, as an absolute path."""
    sections: str
    """Where each step leaves what it made, for the steps after it."""
    job: Job
    steps: list[str]
    own_parts: list[str] = []
    """The parts that installed packages make, whether they were made yet or not."""
    messages: list[str]
    """For ``debug.errors``: what earlier runs for the same report had to say."""
    cwd: str
    """The server's working directory, where rules and signatures of the user's own lie."""
    parent: int
    """The process that must be alive for this one to go on."""
    size_limit: int
    seconds: int
    """For one step."""
    memory: int
    cpu: int
    """Seconds, for all that the worker is asked for."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one step, a line of JSON."""

    step: str
    errors: list[str] = []
    """What failed."""
    notes: list[str] = []
    """What was cut at a limit or was not readable."""


def _info(task: Task, machine: Machine | None) -> dict[str, Any]:
    """The report's ``info`` but for the score."""
    return {
        "id": task.id,
        "score": 0.0,
        "category": task.category,
        "package": task.package,
        "platform": task.platform or (machine.platform if machine else ""),
        "machine": _machine(task, machine),
        "added": task.added_on,
        "started": task.started_on,
        "ended": task.completed_on,
        "duration": task.duration,
        "owner": task.owner,
        "custom": task.custom,
        "route": task.route,
        "exit_address": task.guest.exit_address if isinstance(task.guest, Guest) else None,
        "version": cuckoo_api.__version__,
        "options": ",".join(f"{key}={value}" for key, value in task.options.items()),
    }


def _machine(task: Task, machine: Machine | None) -> dict[str, Any]:
    if isinstance(task.guest, Guest):
        guest: dict[str, Any] = msgspec.to_builtins(task.guest)
    else:
        guest = dict(task.guest)
    return {
        "name": guest.get("name", machine.name if machine else task.machine),
        "label": guest.get("label", machine.label if machine else ""),
        "manager": guest.get("manager", machine.manager if machine else ""),
        "started_on": guest.get("started_on"),
        "shutdown_on": guest.get("shutdown_on"),
        "status": guest.get("status", ""),
    }
