"""What is done to one machine, step by step. Everything here blocks, and runs in a thread.

Before each order that changes something the machine is looked at: that heals a session which has
ended and a connection which is closed, so that the order itself is sent once.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pyVmomi import vim, vmodl

from cuckoo_api.machinery import (
    BackendUnavailable,
    MachineNotFound,
    MachineryError,
    OperationTimedOut,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_machinery_vsphere.datastore import download
from cuckoo_machinery_vsphere.faults import LOST, Cancelled, words
from cuckoo_machinery_vsphere.inventory import Entry, Properties, read_machines
from cuckoo_machinery_vsphere.session import Login, Session, key_of
from cuckoo_machinery_vsphere.tasks import Order, finish

log = structlog.get_logger()

TEMPORARY = "cuckoo memory dump "
"""How the names of our own temporary snapshots begin."""
TIDY_TIMEOUT = 120.0
"""Seconds for a snapshot that was given up while it was made."""
ON, OFF, SUSPENDED = "poweredOn", "poweredOff", "suspended"
DEVICES = "config.hardware.device"
_LOOKED_AT = [
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.question",
    "snapshot",
]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A node of a machine's snapshots."""

    key: str
    name: str
    parent: str
    """The parent's key; empty at the root."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """A machine's snapshots, those of our own dumps apart."""

    kept: tuple[Snapshot, ...] = ()
    temporary: tuple[Snapshot, ...] = ()
    current: Snapshot | None = None
    """The one that a revert without a name goes to; never a temporary one."""

    @classmethod
    def of(cls, has: Properties) -> Snapshots:
        """From the property ``snapshot``, which is unset where there are none."""
        info = has.get("snapshot")
        if info is None:
            return cls()
        nodes = {node.key: node for node in _nodes(info.rootSnapshotList)}
        at = nodes.get(key_of(info.currentSnapshot)) if info.currentSnapshot else None
        while at is not None and at.name.startswith(TEMPORARY):
            at = nodes.get(at.parent)
        mine = tuple(node for node in nodes.values() if node.name.startswith(TEMPORARY))
        kept = tuple(node for node in nodes.values() if node not in mine)
        return cls(kept, mine, at)

    def find(self, label: str, name: str) -> Snapshot | None:
        """The one to revert to; None only for an empty name and no snapshots."""
        if not name:
            return self.current
        found = [node for node in self.kept if node.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise SnapshotNotFound(
                f"{label}: {len(found)} snapshots are called {name!r}; rename or remove the others"
            )
        has = ", ".join(sorted({node.name for node in self.kept})) or "none"
        raise SnapshotNotFound(f"{label} has no snapshot {name!r}; it has: {has}")


def _nodes(trees: Any) -> Iterator[Snapshot]:
    left = deque((tree, "") for tree in trees)  # a chain may be as deep as there are snapshots
    while left:
        tree, parent = left.popleft()
        key = key_of(tree.snapshot)
        yield Snapshot(key, tree.name, parent)
        left.extend((child, key) for child in tree.childSnapshotList or ())


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine in the hands of one order."""

    session: Session
    label: str
    entry: Entry
    order: Order = field(default_factory=Order)

    # -- looking --------------------------------------------------------------------------------

    def look(self, *more: str) -> Properties:
        """What it is like now."""
        key, paths = self.entry.key, [*_LOOKED_AT, *more]
        has = self.session.read(lambda login: read_machines(login, [key], paths)).get(key)
        if has is None:
            raise MachineNotFound(f"{self.label}: the server has this machine no more")
        refuse_unreachable(self.label, has)
        return has

    def power(self) -> str:
        """Its power state, in the server's words."""
        return str(self.look()["runtime.powerState"])

    def running(self) -> Properties:
        """The same as :meth:`look`; WrongState unless it runs."""
        has = self.look()
        if has["runtime.powerState"] != ON:
            raise WrongState(f"{self.label} is {has['runtime.powerState']}, not {ON}")
        return has

    # -- ordering -------------------------------------------------------------------------------

    def perform(self, what: str, send: Callable[[Login], Any], order: Order | None = None) -> Any:
        """Send an order, once, and wait for its task; the task's result."""
        return self._wait(what, self._send(send, order), order)

    def _send(self, send: Callable[[Login], Any], order: Order | None = None) -> Any:
        (order or self.order).check()
        return self.session.act(send)

    def _wait(self, what: str, task: Any, order: Order | None = None) -> Any:
        seconds = self.session.server.task_timeout
        try:
            return finish(self.session, task, f"{self.label}: {what}", seconds, order or self.order)
        except Cancelled:
            self._see_off(task)
            raise
        except OperationTimedOut as exc:
            question = self.look().get("runtime.question")
            if question is None:
                raise
            text = " ".join(question.text.split())
            raise OperationTimedOut(f"{exc}; vSphere waits for an answer to: {text}") from exc

    def _see_off(self, task: Any) -> None:
        """Wait for the end of a task that nobody wants any more.

        A machine whose power-on is under way still looks off: the power-off that comes next would
        be content with that.
        """
        key, seconds = key_of(task), self.session.server.task_timeout
        with contextlib.suppress(vmodl.MethodFault, *LOST):  # few tasks can be cancelled
            self.session.act(lambda login: login.bind(vim.Task, key).CancelTask())
        with contextlib.suppress(MachineryError, vmodl.MethodFault, *LOST):
            finish(self.session, task, "the rest of a task", seconds, Order())

    def restore_and_start(self, snapshot: str) -> None:
        """Revert, and see to it that it runs: a snapshot may have been taken of a machine off."""
        has = self.look(DEVICES)
        for fault in kept_disks(has):
            raise WrongState(f"{self.label}: {fault}")
        found = Snapshots.of(has)
        for left_over in found.temporary:
            log.warning("vsphere.leftover", label=self.label, snapshot=left_over.name)
            self._remove(left_over.key)
        target = found.find(self.label, snapshot)
        if target is not None:
            key = target.key  # the present of a running machine goes with the revert
            self.perform(
                "revert", lambda login: login.bind(vim.vm.Snapshot, key).RevertToSnapshot_Task()
            )
        else:
            self._switch_off()
        if self.power() != ON:
            try:
                self.perform(
                    "power on", lambda login: login.machine(self.entry.key).PowerOnVM_Task()
                )
            except vim.fault.InvalidPowerState as exc:
                if exc.existingState != ON:
                    raise

    def power_off(self) -> None:
        """Cut the power, also of a machine that is busy with another order."""
        end = time.monotonic() + self.session.server.task_timeout
        while True:
            try:
                self._switch_off()
            except vim.fault.TaskInProgress as exc:  # refused, so it may be sent again
                left = end - time.monotonic()
                self._wait_for_other(exc, left)
            else:
                return

    def _wait_for_other(self, fault: vim.fault.TaskInProgress, seconds: float) -> None:
        if seconds <= 0 or fault.task is None:
            raise fault
        with contextlib.suppress(vmodl.MethodFault):  # how it ended is not this order's business
            finish(self.session, fault.task, f"{self.label}: another task", seconds, self.order)

    def _switch_off(self) -> None:
        if self.power() == OFF:
            return
        try:
            self.perform("power off", lambda login: login.machine(self.entry.key).PowerOffVM_Task())
        except vim.fault.InvalidPowerState as exc:
            if exc.existingState != OFF:
                raise

    def reset(self) -> None:
        self.running()
        self.perform("reset", lambda login: login.machine(self.entry.key).ResetVM_Task())

    def suspend(self) -> None:
        """Keep its memory on the disk and its processors still; one that is so already is fine."""
        if self.power() == SUSPENDED:
            return
        self.running()
        self.perform("suspend", lambda login: login.machine(self.entry.key).SuspendVM_Task())

    def resume(self) -> None:
        """Let a suspended one go on."""
        if (power := self.power()) != SUSPENDED:
            raise WrongState(f"{self.label} is {power}, not {SUSPENDED}")
        self.perform("resume", lambda login: login.machine(self.entry.key).PowerOnVM_Task())

    # -- snapshots ------------------------------------------------------------------------------

    def take_snapshot(self, name: str) -> None:
        """Keep memory and disk; the older ones of this name go when the new one stands."""
        older = [node for node in Snapshots.of(self.running()).kept if node.name == name]
        self.perform("snapshot", self._snapshot(name))
        for node in older:
            self._remove(node.key)

    def _snapshot(self, name: str) -> Callable[[Login], Any]:
        return lambda login: login.machine(self.entry.key).CreateSnapshot_Task(
            name=name, description="Taken by Cuckoo", memory=True, quiesce=False
        )

    def _remove(self, key: str, order: Order | None = None) -> None:
        self.perform(
            "removal of a snapshot",
            lambda login: login.bind(vim.vm.Snapshot, key).RemoveSnapshot_Task(
                removeChildren=False
            ),
            order,
        )

    # -- memory and screen ----------------------------------------------------------------------

    def dump_memory(self, path: Path) -> None:
        """Memory as of a snapshot that is taken for it and removed, whatever happens.

        ``path`` gets the memory (``.vmem``), ``path`` with the ending ``.vmsn`` the file beside it
        that says where in the guest's address space its parts lie; tools want both. A server that
        keeps the memory within the ``.vmsn`` gives that one file, as ``path``.
        """
        self.running()
        name = f"{TEMPORARY}{uuid.uuid4()}"
        state, task = path.with_suffix(".vmsn"), None
        try:
            task = self._send(self._snapshot(name))
            data, memory = self._files_of(key_of(self._wait("snapshot", task)))
            if memory:
                self._download(data, state)
            self._download(memory or data, path)
        except BaseException:
            for file in (state, path):
                file.unlink(missing_ok=True)
            self._tidy(name, task, quietly=True)
            raise
        self._tidy(name, None, quietly=False)

    def _files_of(self, snapshot: str) -> tuple[str, str]:
        """The datastore paths of a snapshot's state and of its memory; the latter may be empty."""
        key = self.entry.key
        has = self.session.read(lambda login: read_machines(login, [key], ["layoutEx"]))[key]
        layout = has["layoutEx"]
        files = {file.key: str(file.name) for file in layout.file}
        for one in layout.snapshot or ():
            if key_of(one.key) == snapshot and one.dataKey in files:
                return files[one.dataKey], files.get(one.memoryKey, "")
        raise MachineryError(f"{self.label}: vSphere does not say where it put the memory")

    def _tidy(self, name: str, making: Any, *, quietly: bool) -> None:
        """Remove the temporary snapshot; ``making`` is the task, where it may not be done yet."""
        order = Order()  # not to be given up
        try:
            if making is not None:
                with contextlib.suppress(vmodl.MethodFault):  # nothing came of it
                    finish(self.session, making, "its snapshot", TIDY_TIMEOUT, order)
            for node in Snapshots.of(self.look()).temporary:
                if node.name == name:
                    self._remove(node.key, order)
        except (MachineryError, vmodl.MethodFault, *LOST) as exc:
            # the next start of the machine removes it
            log.warning("vsphere.snapshot_left", label=self.label, name=name, reason=words(exc))
            if not quietly:
                raise

    def screenshot(self, path: Path) -> None:
        """A picture, which the server puts beside the machine's disks; it is removed there."""
        self.running()
        made = self.perform(
            "screenshot", lambda login: login.machine(self.entry.key).CreateScreenshot_Task()
        )
        try:
            self._download(made, path)
        finally:
            self._delete(made)

    def _download(self, source: str, target: Path) -> None:
        server, datacenter = self.session.server, self.entry.datacenter
        self.session.read(
            lambda login: download(login, server, source, datacenter, target, self.order)
        )

    def _delete(self, source: str) -> None:
        key = self.entry.datacenter_key

        def send(login: Login) -> Any:
            datacenter = login.bind(vim.Datacenter, key)
            return login.content.fileManager.DeleteDatastoreFile_Task(source, datacenter)

        try:
            self.perform("removal of a picture", send, Order())
        except (MachineryError, vmodl.MethodFault, *LOST) as exc:
            log.warning("vsphere.picture_left", label=self.label, file=source, reason=words(exc))


def kept_disks(has: Properties) -> Iterator[str]:
    """What is wrong with disks that a revert leaves as the guest made them."""
    for device in has.get(DEVICES, ()):
        mode = getattr(device.backing, "diskMode", None)
        if isinstance(device, vim.vm.device.VirtualDisk) and mode == "independent_persistent":
            name = device.deviceInfo.label if device.deviceInfo else device.key
            yield f"a revert does not restore its {name}, which is {mode} (make it dependent)"


def refuse_unreachable(label: str, has: Properties) -> None:
    """BackendUnavailable where the server has lost the machine, its host, or does not tell."""
    if not has.get("runtime.powerState"):
        raise BackendUnavailable(f"{label}: vSphere does not tell its state; may the user read it?")
    connection = has.get("runtime.connectionState", "connected")
    if connection != "connected":
        raise BackendUnavailable(f"{label} cannot be reached by vSphere: it is {connection}")
