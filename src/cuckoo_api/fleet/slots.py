"""What the fleet knows about one machine at this moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cuckoo_api.fleet.checks import Seen
from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.machinery import Capability, MachineConfig, MachineState
from cuckoo_api.model.machine import Machine

if TYPE_CHECKING:
    from cuckoo_api.fleet.leases import Lease


@dataclass(eq=False, slots=True)
class Slot:
    """One configured machine. Only the fleet and the machine's lease write here."""

    machine: Machine
    """The row, as it was when the machine was taken in."""
    config: MachineConfig
    hypervisor: Hypervisor
    state: MachineState | None = None
    """The hypervisor's last word, None before the first."""
    asked_at: float = float("-inf")
    """When that was, by the loop's clock."""
    taken: bool = False
    """Being leased, leased, or being released."""
    lease: Lease | None = None
    held: bool = False
    """Its backend is about to be closed, or is not ready: it is given to nobody."""
    stale: bool = False
    """An earlier process left it locked or in quarantine: it may run because of us."""
    suspect: bool = False
    """It may run because of us: to mend it is to power it off."""
    zombie: bool = False
    """A start was given up; the hypervisor may carry it out later all the same."""
    seen: Seen | None = None
    """What was seen of it when it was last looked at; None where its hypervisor lacks it."""
    faults: tuple[str, ...] | None = None
    """What is wrong with it in the configuration or at the hypervisor; None before it is known."""
    quarantine: str | None = None
    failures: int = 0
    """Quarantines since it last did its work well; the next one waits longer."""
    mending: asyncio.Task[None] | None = None
    retry_now: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is a reason to try before the time is over."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def watched(self) -> bool:
        """Whether its backend reports changes of state; else it has to be asked."""
        return Capability.WATCH in self.hypervisor.capabilities

    @property
    def free(self) -> bool:
        """Whether a task may be given to it."""
        return (
            not self.taken
            and not self.held
            and not self.stale
            and self.quarantine is None
            and self.hypervisor.is_open
            and self.state is not MachineState.UNREACHABLE
        )


def slots_of(slots: Mapping[str, Slot], hypervisor: Hypervisor) -> list[Slot]:
    """The machines of one backend."""
    return [slot for slot in slots.values() if slot.hypervisor is hypervisor]
