"""The store in memory: what the fleet asks of it, without a database."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import NewTask, Status, Task, now_text


class MemoryTasks:
    def __init__(self, machines: MemoryMachines) -> None:
        self.rows: dict[int, Task] = {}
        self._machines = machines

    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        ids = []
        for task in tasks:
            ids.append(len(self.rows) + 1)
            fields = {k: v for k, v in msgspec.structs.asdict(task).items()}
            self.rows[ids[-1]] = Task(id=ids[-1], added_on=now_text(), **fields)
        return ids

    async def get(self, task_id: int) -> Task | None:
        return self.rows.get(task_id)

    async def transition(self, task_id: int, source: Status, target: Status) -> bool:
        task = self.rows[task_id]
        if task.status is not source:
            return False
        self.rows[task_id] = msgspec.structs.replace(task, status=target)
        return True

    async def claim(self, machine: Machine) -> Task | None:
        for task in self.rows.values():
            if task.status is Status.PENDING and task.machine in ("", machine.name, machine.label):
                await self.transition(task.id, Status.PENDING, Status.RUNNING)
                self._machines.edit(machine.name, locked=True, task_id=task.id)
                return self.rows[task.id]
        return None


class MemoryMachines:
    def __init__(self) -> None:
        self.rows: dict[str, Machine] = {}
        self.broken = False

    async def sync(self, machines: Sequence[Machine]) -> list[Machine]:
        kept = self.rows
        self.rows = {}
        for number, machine in enumerate(machines, 1):
            old = kept.get(machine.name, machine)
            self.rows[machine.name] = msgspec.structs.replace(
                machine,
                id=number,
                locked=old.locked,
                task_id=old.task_id,
                status=old.status,
                quarantine=old.quarantine,
            )
        return [*self.rows.values()]

    async def list(self) -> list[Machine]:
        return [*self.rows.values()]

    async def get(self, name: str) -> Machine | None:
        return self.rows.get(name)

    async def set_status(self, label: str, manager: str, status: str) -> None:
        for row in list(self.rows.values()):
            if (row.label, row.manager) == (label, manager):
                self.edit(row.name, status=status)

    async def set_quarantine(self, name: str, reason: str | None) -> None:
        self.edit(name, quarantine=reason)

    async def unlock(self, name: str) -> None:
        self.edit(name, locked=False, task_id=None)

    def edit(self, name: str, **fields: object) -> None:
        if self.broken:
            raise OSError("database or disk is full")
        self.rows[name] = msgspec.structs.replace(self.rows[name], **fields)


class MemoryStore:
    def __init__(self) -> None:
        self.machines = MemoryMachines()
        self.tasks = MemoryTasks(self.machines)

    async def close(self) -> None:
        """Nothing to close."""
