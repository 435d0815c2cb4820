"""A machine in the hands of one task."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from cuckoo_api.fleet.deadlines import to_the_end
from cuckoo_api.fleet.slots import Slot
from cuckoo_api.machinery import (
    Capability,
    GuestAddress,
    MachineryError,
    MachineState,
    OperationTimedOut,
    StateChange,
)
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Task

log = structlog.get_logger()


class Lease:
    """What the run of one task may do with its machine.

    Every method raises MachineryError subclasses and ends within the core's deadline. Those of
    optional methods (``capabilities`` tells) raise NotSupported where the backend cannot.
    """

    def __init__(
        self,
        machine: Machine,
        task: Task,
        address: GuestAddress,
        slot: Slot,
        starts: asyncio.Semaphore,
    ) -> None:
        self.machine = machine
        self.task = task
        self.address = address
        """Where the agent is, and on which sockets the core listens before the start."""
        self._slot = slot
        self._hypervisor = slot.hypervisor
        self._starts = starts
        self._calls = asyncio.Lock()  # one call for a label at once, says the contract
        self._running = False
        self._may_pause = False
        self._news = asyncio.Event()
        self._heard: StateChange | None = None

    @property
    def capabilities(self) -> Capability:
        """What the machine's backend can do."""
        return self._hypervisor.capabilities

    async def restore_and_start(self) -> None:
        """Revert to the configured snapshot and run. RUNNING when it returns.

        Waits for its turn first: at most ``[cuckoo] max_vmstartup_count`` starts at once, and at
        most as many of one hypervisor as its own section allows. When it fails, times out or is
        cancelled, the machine was ordered off before it returns.
        """
        # its hypervisor's turn first: who waits for that keeps nobody on another one waiting
        async with self._hypervisor.starts, self._starts, self._calls:
            self._running = False
            try:
                await self._hypervisor.restore_and_start(
                    self._slot.label, self._slot.config.snapshot
                )
            except BaseException:
                await to_the_end(self._undo_start())
                raise
            self._slot.zombie = False
            self._running = True

    async def _undo_start(self) -> None:
        self._slot.zombie = True
        try:
            await self._hypervisor.ensure_off(self._slot.label, even_if_off=True)
        except MachineryError as exc:  # the release tries again and decides
            log.warning("machine.start_not_undone", label=self._slot.label, reason=str(exc))

    async def power_off(self) -> None:
        """Cut the power; the machine is off when it returns."""
        self._running = False
        await self._hypervisor.ensure_off(self._slot.label)

    async def reboot(self) -> None:
        """Restart the guest as its reset button would; disk changes stay (REBOOT)."""
        await self._order("reboot", seconds=self._hypervisor.deadlines.order)

    async def screenshot(self, path: Path) -> None:
        """Write the screen to ``path``, PNG or PPM (SCREENSHOT)."""
        # beside other calls: a memory dump takes minutes, and the contract allows it
        seconds = self._hypervisor.deadlines.screenshot
        await self._hypervisor.order("screenshot", self._slot.label, path, seconds=seconds)

    async def dump_memory(self, path: Path) -> None:
        """Write all physical memory to ``path`` (MEMORY_DUMP)."""
        self._may_pause = True
        try:
            await self._order("dump_memory", path, seconds=self._hypervisor.deadlines.dump)
        finally:
            self._may_pause = False
            self._news.set()

    async def start_capture(self, path: Path) -> None:
        """Write the guest's packets to ``path``, pcap (CAPTURE)."""
        await self._order("start_capture", path, seconds=self._hypervisor.deadlines.order)

    async def stop_capture(self) -> None:
        """Finish the capture's file (CAPTURE)."""
        await self._order("stop_capture", seconds=self._hypervisor.deadlines.order)

    async def _order(self, method: str, *arguments: Path, seconds: float) -> None:
        async with self._calls:
            await self._hypervisor.order(method, self._slot.label, *arguments, seconds=seconds)

    async def wait_stopped(self) -> StateChange:
        """Return when the started machine left RUNNING and this lease had not asked for it.

        ``state`` tells how: POWEROFF or ABORTED is the guest's doing, PAUSED the hypervisor's (a
        full disk), UNREACHABLE means that the hypervisor was away for too long: machines run on
        without it for a while. After :meth:`power_off` it never returns.
        """
        watched = Capability.WATCH in self.capabilities
        deadlines = self._hypervisor.deadlines
        now = asyncio.get_running_loop().time
        away_since = stopped_since = None
        while True:
            self._news.clear()
            change, sure = await self._look()
            # An event says only that something changed: those of the revert may come late. A
            # backend without events, or too busy to answer, can but be asked again in a while.
            patience = None if watched and sure else deadlines.ask
            if change is None or not self._running:
                away_since = None
            elif change.state is MachineState.UNREACHABLE:
                away_since = now() if away_since is None else away_since
                patience = min(deadlines.ask, away_since + deadlines.away - now())
                if patience <= 0:
                    return change
            elif not watched or change == self._heard:
                return change
            else:  # seen before its event came, which has the reason
                stopped_since = now() if stopped_since is None else stopped_since
                patience = stopped_since + deadlines.fresh - now()
                if patience <= 0:
                    return change
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> tuple[StateChange | None, bool]:
        """How the machine has stopped, if it has; and whether that is certain."""
        label = self._slot.label
        if not self._running:
            return None, True
        may_pause = self._may_pause  # the answer may come when the dump has ended
        try:
            state = await self._hypervisor.state(label)
        except OperationTimedOut:
            return None, False
        except MachineryError as exc:
            return StateChange(label, MachineState.UNREACHABLE, str(exc)), True
        if state is MachineState.RUNNING or (
            state is MachineState.PAUSED and (may_pause or self._may_pause)
        ):
            return None, True
        if self._heard is not None and self._heard.state is state:
            return self._heard, True
        return StateChange(label, state), True

    def notice(self, change: StateChange) -> None:
        """The fleet heard this about the machine."""
        self._heard = change
        self._news.set()
