"""Orders that the server carries out in its own time, and the wait for their end."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from pyVmomi import vim, vmodl

from cuckoo_api.machinery import BackendUnavailable, OperationTimedOut
from cuckoo_machinery_vsphere.faults import LOST, Cancelled
from cuckoo_machinery_vsphere.session import Login, Session, fault_of, key_of

LOOK = 1
"""Seconds after which a wait looks whether it was given up. The end of a task is told at once."""
_PC = vmodl.query.PropertyCollector
_WATCHED = ["info.state", "info.error", "info.result"]


class Order:
    """One operation on a machine, which runs in a thread and can be given up from another."""

    def __init__(self, *, first: bool = False) -> None:
        """``first``: no other order has it given up."""
        self.first = first
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Let it end as soon as it can. What it has begun to tidy up, it tidies up."""
        self._given_up.set()

    def check(self) -> None:
        """Raise when it was given up: nothing more may be sent."""
        if self._given_up.is_set():
            raise Cancelled("the order was given up")


def finish(session: Session, task: vim.Task, what: str, seconds: float, order: Order) -> Any:
    """Wait for the task's end; its result. Raises its fault, or OperationTimedOut."""
    key, end = key_of(task), time.monotonic() + seconds

    def follow(login: Login) -> Any:
        with private_collector(login) as collector:
            spec = _PC.FilterSpec(
                objectSet=[_PC.ObjectSpec(obj=login.bind(vim.Task, key), skip=False)],
                propSet=[_PC.PropertySpec(type=vim.Task, pathSet=_WATCHED, all=False)],
            )
            collector.CreateFilter(spec, False)
            version, seen = "", dict[str, Any]()
            while True:
                order.check()
                if time.monotonic() >= end:
                    raise OperationTimedOut(f"{what} is not done after {seconds:g} s")
                update = collector.WaitForUpdatesEx(version, _PC.WaitOptions(maxWaitSeconds=LOOK))
                if update is None:
                    continue
                version = update.version
                for change in changes(update):
                    if change.kind == "leave":
                        raise BackendUnavailable(f"{what}: the server has forgotten the task")
                    seen |= {one.name: one.val for one in change.changeSet}
                if seen.get("info.state") == "success":
                    return seen.get("info.result")
                if seen.get("info.state") == "error":
                    raise seen["info.error"]

    return session.read(follow)


@contextlib.contextmanager
def private_collector(login: Login) -> Any:
    """A collector for one waiting thread: waits on a shared one disturb each other."""
    collector = login.content.propertyCollector.CreatePropertyCollector()
    collector = vmodl.query.PropertyCollector(key_of(collector), login.stub)
    try:
        yield collector
    finally:
        # it ends with the session anyway
        with contextlib.suppress(vmodl.MethodFault, *LOST):
            collector.DestroyPropertyCollector()


def changes(update: Any) -> Any:
    """The objects of an update set."""
    for part in update.filterSet:
        for change in part.objectSet:
            fault_of(change.missingSet)
            yield change
