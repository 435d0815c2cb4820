"""The server's stream of changes: one query that stays open, in a thread, on its own connection."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pyVmomi import vim, vmodl

from cuckoo_api.machinery import MachineryError
from cuckoo_machinery_vsphere.faults import LOST, translated
from cuckoo_machinery_vsphere.inventory import machines_below_root
from cuckoo_machinery_vsphere.session import Login, Session, discard, key_of
from cuckoo_machinery_vsphere.tasks import changes, private_collector

WAIT = 15
"""Seconds after which the server answers although nothing has changed: a dead one is noticed."""
_PC = vmodl.query.PropertyCollector
_POWER, _CONNECTION = "runtime.powerState", "runtime.connectionState"
States = dict[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Update:
    """What has changed at one moment."""

    first: bool = False
    """Whether this begins anew, with all machines: the server was away, or the session was."""
    states: States = field(default_factory=dict)
    """By key: power and connection, of those machines where one has changed."""
    moved: bool = False
    """Whether a machine came, went, or got another name or place."""


class Updates(threading.Thread):
    """Follows all machines until it is stopped. A session that ends meanwhile is made anew."""

    def __init__(self, session: Session, tell: Callable[[Update | MachineryError], None]) -> None:
        """``tell`` is called in the thread; an error is the last that it gets."""
        super().__init__(name="vsphere-updates", daemon=True)
        self._session = session
        self._tell = tell
        self._stopped = threading.Event()
        self._waiting: vmodl.query.PropertyCollector | None = None
        self._known: dict[str, dict[str, str]] = {}

    def stop(self) -> None:
        """Let it end. Blocks for as long as the server needs to answer."""
        self._stopped.set()
        waiting = self._waiting
        if waiting is not None:
            with contextlib.suppress(vmodl.MethodFault, *LOST):
                waiting.CancelWaitForUpdates()

    def run(self) -> None:
        try:
            login = self._session.login()
            while not self._stopped.is_set():
                self._known.clear()
                try:
                    self._follow(login)
                except vim.fault.NotAuthenticated:
                    if not self._known:  # it ended before it began: a new one would do no better
                        raise
                    login = self._session.renew(login)
        except Exception as exc:  # noqa: BLE001 - who waits for changes has to learn that none come
            if not self._stopped.is_set():
                self._tell(translated(exc, f"{self._session.server.name}: the stream of changes"))
        finally:
            self._waiting = None

    def _follow(self, login: Login) -> None:
        own = self._session.sibling(login, WAIT + self._session.server.timeout)
        wanted = machines_below_root(own, "name", "parent", _POWER, _CONNECTION)
        try:
            with private_collector(own) as collector:
                # a cancel has to come by another connection than the one that waits
                self._waiting = login.bind(vmodl.query.PropertyCollector, key_of(collector))
                collector.CreateFilter(wanted, True)
                self._wait(collector)
        finally:
            discard(own.stub)

    def _wait(self, collector: vmodl.query.PropertyCollector) -> None:
        version, update = "", Update(first=True)
        options = _PC.WaitOptions(maxWaitSeconds=WAIT)
        while not self._stopped.is_set():
            answer = collector.WaitForUpdatesEx(version, options)
            if answer is None:
                continue
            version = answer.version
            moved = self._note(answer, update.states)
            update = Update(update.first, update.states, update.moved or moved)
            if not answer.truncated:
                self._tell(update)
                update = Update()

    def _note(self, answer: vmodl.query.PropertyCollector.UpdateSet, states: States) -> bool:
        """Take over what an answer says; whether a machine came, went or is another now."""
        moved = False
        for change in changes(answer):
            key = key_of(change.obj)
            if change.kind == "leave":
                moved = True
                self._known.pop(key, None)
                states.pop(key, None)
                continue
            new = {one.name: one.val for one in change.changeSet}
            moved = moved or change.kind == "enter" or bool(new.keys() & {"name", "parent"})
            has = self._known.setdefault(key, {})
            has |= {name: str(new[name]) for name in (_POWER, _CONNECTION) if name in new}
            states[key] = has.get(_POWER, ""), has.get(_CONNECTION, "connected")
        return moved
