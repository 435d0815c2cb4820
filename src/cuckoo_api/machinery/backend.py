"""The contract between the core and a hypervisor: one abstract class.

A backend translates. It holds no state of an analysis (the label is the key), sets no deadlines
of its own beyond those that keep a call from hanging for ever, does not retry, and does not
decide. The core owns deadlines, retries, leases and quarantine; after it cancels a call or gives
up on one, it asks :meth:`MachineryBackend.state` and calls :meth:`MachineryBackend.power_off`
before it lets go of the machine.

All methods are coroutines and must never block the event loop: run a blocking binding in an
executor of the plugin's own, with a bounded number of threads. Calls for different labels may
run at the same time; the core never runs two calls for one label at once, except that
:meth:`~MachineryBackend.state`, :meth:`~MachineryBackend.screenshot` and
:meth:`~MachineryBackend.power_off` may come at any moment.

Every method may raise :class:`~cuckoo_api.machinery.errors.MachineNotFound` for an unknown label
and :class:`~cuckoo_api.machinery.errors.BackendUnavailable` when the hypervisor does not answer.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from pathlib import Path

from cuckoo_api.machinery.errors import NotSupported
from cuckoo_api.machinery.types import (
    BackendConfig,
    Capability,
    GuestAddress,
    MachineFacts,
    MachineState,
    StateChange,
)


class MachineryBackend(abc.ABC):
    """One hypervisor and the machines on it that the configuration names."""

    capabilities: Capability = Capability.NONE
    """What it can do; the class says it. :meth:`open` may take away what this hypervisor lacks."""

    def __init__(self, config: BackendConfig) -> None:
        """Keep the configuration. No I/O here; that is :meth:`open`'s."""
        self.config = config

    # -- required ---------------------------------------------------------------------------

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect, and remove what an earlier process of this backend left behind.

        Called once, first, before any other method. Machines that run although nobody leased
        them are not this method's business, except those the backend itself had started.
        Raises BadConfig (what is wrong and how to mend it) or BackendUnavailable. Within 30 s.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of everything: connections, threads, processes and network devices made here.

        May be called in any state, also after a failed :meth:`open`, and twice. Machines that
        the backend runs inside its own process are powered off. Within 10 s. Raises nothing.
        """

    @abc.abstractmethod
    async def labels(self) -> list[str]:
        """The labels that the hypervisor has now, whether configured or not. Within 5 s."""

    @abc.abstractmethod
    async def state(self, label: str) -> MachineState:
        """The machine's state now, from the hypervisor and not from memory. Any state, within 5 s.

        A hypervisor that does not answer is BackendUnavailable, never a guess.
        """

    @abc.abstractmethod
    async def restore_and_start(self, label: str, snapshot: str) -> None:
        """Throw away the machine's present, restore ``snapshot`` and let it run.

        From any state; a running machine is powered off first. ``snapshot`` empty means the
        machine's current snapshot, or a start from its disk where it has none. Afterwards the
        state is RUNNING. Nothing the guest did before may be left, in memory or on disk.
        Raises SnapshotNotFound, WrongState, OperationTimedOut. The core allows
        ``[timeouts] vm_state`` (60 s). Cancelled or failed, it may leave the machine in any state
        that :meth:`power_off` mends.
        """

    @abc.abstractmethod
    async def power_off(self, label: str) -> None:
        """Cut the power; no orderly shutdown. Afterwards the state is POWEROFF.

        From any state; idempotent: a machine that is off already is a success. Within 10 s.
        """

    # -- optional, each with its Capability flag ------------------------------------------------

    async def reboot(self, label: str) -> None:
        """REBOOT: restart the guest as its reset button would; disk changes stay.

        From RUNNING, else WrongState. Returns when the reset is ordered; state stays RUNNING.
        """
        raise NotSupported(f"{self.config.name}: reboot")

    async def pause(self, label: str) -> None:
        """PAUSE: stop the virtual CPUs. RUNNING (else WrongState) -> PAUSED; PAUSED is fine."""
        raise NotSupported(f"{self.config.name}: pause")

    async def resume(self, label: str) -> None:
        """PAUSE: let the virtual CPUs go on. From PAUSED (else WrongState) to RUNNING."""
        raise NotSupported(f"{self.config.name}: resume")

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        """SNAPSHOT: keep the machine's memory and disk under this name, replacing an older one.

        From RUNNING or PAUSED, else WrongState; afterwards the machine may be in any state.
        """
        raise NotSupported(f"{self.config.name}: take_snapshot")

    async def screenshot(self, label: str, path: Path) -> None:
        """SCREENSHOT: write the screen to ``path`` as PNG or PPM. RUNNING or PAUSED. Within 5 s.

        ``path`` does not exist yet; its folder does. Nothing is left there after a failure.
        """
        raise NotSupported(f"{self.config.name}: screenshot")

    async def dump_memory(self, label: str, path: Path) -> None:
        """MEMORY_DUMP: write all physical memory to ``path`` (ELF core or raw). RUNNING or PAUSED.

        The guest is stopped while it lasts and runs on afterwards if it ran before.
        """
        raise NotSupported(f"{self.config.name}: dump_memory")

    async def start_capture(self, label: str, path: Path) -> None:
        """CAPTURE: write what the guest sends and receives to ``path`` (pcap). RUNNING, PAUSED."""
        raise NotSupported(f"{self.config.name}: start_capture")

    async def stop_capture(self, label: str) -> None:
        """CAPTURE: finish the file. A machine that went away has finished it already: a success."""
        raise NotSupported(f"{self.config.name}: stop_capture")

    def watch(self) -> AsyncIterator[StateChange]:
        """WATCH: every change of state of any machine, as the hypervisor reports it, until closed.

        The first thing is each configured machine's present state; so is it again after the
        hypervisor was away. One consumer at a time.
        """
        raise NotSupported(f"{self.config.name}: watch")

    def address(self, label: str) -> GuestAddress:
        """ADDRESS: how to reach the guest where that is not its configured address.

        After :meth:`open`, in any state, without I/O; the same answer until :meth:`close`.
        """
        raise NotSupported(f"{self.config.name}: address")

    async def console(self, label: str) -> bytes:
        """CONSOLE: the last 64 KiB that the guest wrote to its serial console, for people."""
        raise NotSupported(f"{self.config.name}: console")

    async def inspect(self, label: str) -> MachineFacts:
        """INSPECT: what the hypervisor knows of the machine, for people and the check at start-up.

        Also for machines that the configuration does not name. Any state; changes nothing. Within
        5 s.
        """
        raise NotSupported(f"{self.config.name}: inspect")
