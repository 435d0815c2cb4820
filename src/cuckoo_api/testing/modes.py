"""The nouns of the fake hypervisor: its machines, and the ways in which its calls go wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cuckoo_api.machinery import MachineryError, MachineState
from cuckoo_api.testing.guest import FakeGuest


@dataclass(frozen=True, slots=True)
class Slow:
    """The call takes this many seconds of the world's clock, or until ``until`` is set."""

    seconds: float = 0.0
    until: asyncio.Event | None = None


@dataclass(frozen=True, slots=True)
class Never:
    """The call hangs until it is cancelled.

    With ``zombie`` it takes effect all the same, when the test calls
    :meth:`FakeHypervisor.rise`: an order that the hypervisor had taken already.
    """

    zombie: bool = False


@dataclass(frozen=True, slots=True)
class Failing:
    """The call raises ``error``, the first ``times`` times or always."""

    error: MachineryError
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Dies:
    """The call succeeds; ``after`` seconds of the world's clock later the machine aborts."""

    after: float = 0.0


Mode = Slow | Never | Failing | Dies


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot holds."""

    disk: dict[str, bytes] = field(default_factory=dict)
    memory: dict[str, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class FakeMachine:
    """One machine. ``disk`` and ``memory`` are what its guest wrote: a revert can be proven."""

    label: str
    snapshots: dict[str, Snapshot]
    current: str
    """The snapshot that an empty name means; empty: the machine starts from its disk."""
    guest: FakeGuest | None
    state: MachineState = MachineState.POWEROFF
    disk: dict[str, bytes] = field(default_factory=dict)
    memory: dict[str, bytes] = field(default_factory=dict)
    history: list[MachineState] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What an inspection finds wrong with it."""
    ip: str = ""
    uuid: str = ""
    """As an inspection finds them."""


@dataclass(eq=False)
class Call:
    """One call that a backend made. ``outcome`` is empty while it runs."""

    method: str
    label: str
    outcome: str = ""
    """``done``, ``cancelled`` or the name of the error."""
