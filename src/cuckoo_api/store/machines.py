"""Machines: what is configured, who holds it, and the hypervisor's last word."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import now_text
from cuckoo_api.store.connection import Database, Row, Statement, Transaction, compiled
from cuckoo_api.store.schema import machines

_FIELDS = Machine.__struct_fields__
_JSON = ("tags", "options", "rcparams")
_FLAGS = ("locked",)
_CONFIGURED = (
    "label",
    "manager",
    "ip",
    "platform",
    "tags",
    "options",
    "interface",
    "snapshot",
    "resultserver_ip",
    "resultserver_port",
)
"""What the configuration decides; the rest is history that a restart keeps."""

_columns = [machines.c[name] for name in _FIELDS]
_by_name = machines.c.name == sa.bindparam("by_name")

_LIST = compiled(sa.select(*_columns).order_by(machines.c.id))
_GET = compiled(sa.select(*_columns).where(_by_name))
_NAMES = compiled(sa.select(machines.c.name))
_INSERT = compiled(
    sa.insert(machines).values({name: sa.bindparam(name) for name in ("name", *_CONFIGURED)})
)
_CONFIGURE = compiled(
    sa.update(machines).where(_by_name).values({name: sa.bindparam(name) for name in _CONFIGURED})
)
_DELETE = compiled(sa.delete(machines).where(_by_name))
_STATUS = compiled(
    sa.update(machines)
    .where(
        machines.c.label == sa.bindparam("by_label"),
        machines.c.manager == sa.bindparam("by_manager"),
        machines.c.status.is_distinct_from(sa.bindparam("status")),
    )
    .values(status=sa.bindparam("status"), status_changed_on=sa.bindparam("now"))
)
_QUARANTINE = compiled(
    sa.update(machines).where(_by_name).values(quarantine=sa.bindparam("reason"))
)
_UNLOCK = compiled(
    sa.update(machines)
    .where(_by_name, machines.c.locked)
    .values(locked=sa.false(), locked_changed_on=sa.bindparam("now"), task_id=sa.null())
)
LOCK = compiled(
    sa.update(machines)
    .where(_by_name, ~machines.c.locked, machines.c.quarantine.is_(None))
    .values(locked=sa.true(), locked_changed_on=sa.bindparam("now"), task_id=sa.bindparam("task"))
)
"""Lease a machine to a task; changes no row when it is leased or in quarantine."""


def _machine(row: Row) -> Machine:
    values: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
    for name in _JSON:
        values[name] = msgspec.json.decode(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    return Machine(**values)


def _values(machine: Machine) -> dict[str, Any]:
    """What the configuration decides, as its columns hold it."""
    values = {name: getattr(machine, name) for name in _CONFIGURED}
    for name in _JSON:
        if name in values:
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return values


class MachineStore:
    """The machines of all machineries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sync(
        self, configured: Sequence[Machine], *, others: Collection[str] = ()
    ) -> list[Machine]:
        """Make the rows those of the configuration; ids, locks and states of known names stay.

        Quarantines are forgotten: that a machine is taken in anew is the operator's word that
        things were mended. The rows of ``others`` stay as they are.
        """

        async def operation(transaction: Transaction) -> None:
            known = {name for (name,) in await transaction.rows(_NAMES, {})}
            for machine in configured:
                values = _values(machine)
                if machine.name in known:
                    await transaction.run(_CONFIGURE, {**values, "by_name": machine.name})
                    await transaction.run(_QUARANTINE, {"by_name": machine.name, "reason": None})
                else:
                    await transaction.run(_INSERT, {**values, "name": machine.name})
            for name in known - {machine.name for machine in configured} - {*others}:
                await transaction.run(_DELETE, {"by_name": name})

        await self._database.write(operation)
        return await self.list()

    async def describe(self, machine: Machine) -> None:
        """Keep what the configuration says of a machine that is there, and nothing else."""

        async def operation(transaction: Transaction) -> None:
            await transaction.run(_CONFIGURE, {**_values(machine), "by_name": machine.name})

        await self._database.write(operation)

    async def list(self) -> list[Machine]:
        """Every configured machine, by id."""
        return [_machine(row) for row in await self._database.rows(_LIST, {})]

    async def get(self, name: str) -> Machine | None:
        """One machine by its name."""
        rows = await self._database.rows(_GET, {"by_name": name})
        return _machine(rows[0]) if rows else None

    async def set_status(self, label: str, manager: str, status: str) -> None:
        """Keep the hypervisor's word; the time of change moves only when the word did."""
        await self._run(
            _STATUS,
            {"by_label": label, "by_manager": manager, "status": status, "now": now_text()},
        )

    async def set_quarantine(self, name: str, reason: str | None) -> None:
        """Give the machine no task, and say why; None lifts it."""
        await self._run(_QUARANTINE, {"by_name": name, "reason": reason})

    async def unlock(self, name: str) -> None:
        """End the machine's lease, if it has one."""
        await self._run(_UNLOCK, {"by_name": name, "now": now_text()})

    async def _run(self, statement: Statement, params: dict[str, Any]) -> None:
        async def operation(transaction: Transaction) -> None:
            await transaction.run(statement, params)

        await self._database.write(operation)
