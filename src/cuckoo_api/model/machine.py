"""A machine as the API shows it."""

from __future__ import annotations

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One configured machine, with its lease and the hypervisor's last word on it."""

    id: int
    name: str
    label: str
    manager: str
    """The machinery's name, as in ``[cuckoo] machinery``."""
    ip: str
    platform: str
    tags: list[str] = []
    options: list[str] = []
    interface: str | None = None
    snapshot: str | None = None
    locked: bool = False
    locked_changed_on: str | None = None
    status: str | None = None
    """A :class:`~cuckoo_api.machinery.types.MachineState`, or None before the first word."""
    status_changed_on: str | None = None
    resultserver_ip: str
    resultserver_port: int
    rcparams: dict[str, str] = {}
    quarantine: str | None = None
    """Why no task is given to it, or None."""
    task_id: int | None = None
    """The task that holds the lease."""
