"""The backend: the contract's calls, said in VBoxManage's commands."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    BadConfig,
    Capability,
    MachineFacts,
    MachineNotFound,
    MachineryBackend,
    MachineryError,
    MachineState,
    OperationTimedOut,
    StateChange,
    WrongState,
)
from cuckoo_machinery_virtualbox.info import (
    STATES,
    MachineInfo,
    choose,
    interfaces,
    listed,
    listed_long,
    names_of,
    shown,
)
from cuckoo_machinery_virtualbox.manage import VBoxManage
from cuckoo_machinery_virtualbox.processes import end_orphans, kill, running
from cuckoo_machinery_virtualbox.watch import Folders

OPEN_TIMEOUT = 25.0
"""The first command starts VBoxSVC, which reads every machine's settings. It takes 10 s where an
earlier one is just about to end."""
LIST_TIMEOUT = 4.5
STATE_TIMEOUT = 4.2
SHOW_TIMEOUT = 1.4
LOCK_TIMEOUT = 0.5
"""Of these seconds for a machine's state, how many `showvminfo` gets: alone, and in a queue."""
ORDER_TIMEOUT = 9.0
SCREEN_TIMEOUT = 4.5
START_TIMEOUT = 300.0
"""The core has a deadline of its own for a start, and for a dump."""
DISK_TIMEOUT = 600.0
POWEROFF_TIMEOUT = 3.0
GIVE_UP_TIMEOUT = 3.0
"""Seconds for a start that was given up to come to its end."""
OFF_PATIENCE = 5.0
"""Seconds for a session to end before its process is killed."""
OFF_TIMEOUT = 9.0
LOOK_PAUSE = 0.1
_OFF = {"poweroff", "aborted", "teleported"}
_KEPT = {"saved", "aborted-saved"}
_AT_ANY_TIME = {"controlvm", "debugvm"}
_ADDRESS = "/VirtualBox/GuestInfo/Net/0/V4/IP"


@dataclass(eq=False, slots=True)
class Machine:
    """One of VirtualBox's machines, and what goes on with it."""

    label: str
    uuid: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Two commands at once on a machine that is off disturb each other."""
    start: asyncio.Task[None] | None = None
    """The start that is under way."""
    ended: str = ""
    """Since when it is aborted: an end that a power-off has dealt with, and that is off to us."""


class VirtualBoxBackend(MachineryBackend):
    """VirtualBox, as the user whom the server runs as."""

    capabilities = (
        Capability.REBOOT
        | Capability.PAUSE
        | Capability.SNAPSHOT
        | Capability.SCREENSHOT
        | Capability.MEMORY_DUMP
        | Capability.CAPTURE
        | Capability.WATCH
        | Capability.INSPECT
    )

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self._manage = VBoxManage(Path(config.options["path"]).expanduser())
        self._machines: dict[str, Machine] = {}
        self._watched: set[Folders] = set()

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        if not self._manage.path.is_file():
            raise BadConfig(
                f"there is no {self._manage.path}; install VirtualBox, or set [virtualbox] path"
            )
        await self._ask("list", "vms", timeout=OPEN_TIMEOUT)

    async def close(self) -> None:
        starts = [machine.start for machine in self._machines.values() if machine.start]
        await asyncio.gather(*map(_end, starts))

    async def labels(self) -> list[str]:
        return names_of(await self._list())

    async def state(self, label: str) -> MachineState:
        machine = await self._machine(label)
        return self._state(machine, await self._info(machine))

    # -- power ----------------------------------------------------------------------------------

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        # the first command for long: VBoxSVC, which ends when nobody uses it, may take its time
        machine = await self._machine(label, await self._list(OPEN_TIMEOUT))
        start = machine.start = asyncio.create_task(self._start(machine, snapshot))
        try:
            await asyncio.wait({start})
        finally:
            await _end(start)
            machine.start = None
        if start.cancelled():
            raise WrongState(f"{label}: it was powered off while it started")
        start.result()

    async def _start(self, machine: Machine, snapshot: str) -> None:
        await self._off(machine)
        target = choose(machine.label, await self._show(machine), snapshot)
        if target is not None:
            await self._order(
                machine, "snapshot", machine.uuid, "restore", target.uuid, timeout=DISK_TIMEOUT
            )
        await self._launch(machine)

    async def _launch(self, machine: Machine) -> None:
        """Start it. Given up, VBoxSVC would carry the order out all the same, some time later."""
        mode = self.config.options["mode"]
        order = asyncio.create_task(
            self._order(machine, "startvm", machine.uuid, "--type", mode, timeout=START_TIMEOUT)
        )
        try:
            await asyncio.wait({order})
        except asyncio.CancelledError:
            loop = asyncio.get_running_loop()
            over = loop.time() + GIVE_UP_TIMEOUT
            while not order.done() and loop.time() < over:
                # the order ends with the process that it waits for
                await asyncio.to_thread(kill, machine.uuid)
                await asyncio.wait({order}, timeout=LOOK_PAUSE)
            await _end(order)
            raise
        order.result()

    async def power_off(self, label: str) -> None:
        machine = await self._machine(label)
        if machine.start is not None:
            await _end(machine.start)
        await self._off(machine)

    async def _off(self, machine: Machine) -> None:
        """Off, with no process that runs it.

        Its session outlives the state by a second. One that stays longer is of a machine that
        hangs in its start or its end; or of no machine, but of a program that has it open.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            info = await self._info(machine)
            waited = loop.time() - began
            hangs = waited > OFF_PATIENCE
            if info.word in _KEPT and not info.session:
                await self._order(machine, "discardstate", machine.uuid)
            elif info.word in _OFF:
                # VBoxSVC, killed and back, knows nothing of a process that runs the guest on
                lives = await asyncio.to_thread(running, machine.uuid)
                if not lives and (hangs or not info.session):
                    break
            elif info.word not in _KEPT:
                hangs |= not await self._cut(machine)
            if waited > OFF_TIMEOUT:
                raise OperationTimedOut(f"{machine.label} is still {info.word} ({info.session})")
            if hangs:
                await asyncio.to_thread(kill, machine.uuid)
            await asyncio.sleep(LOOK_PAUSE)
        ended = info.since if info.word == "aborted" else ""
        if ended != machine.ended:
            machine.ended = ended
            for folders in self._watched:  # no folder tells of this
                folders.tell({machine.label})

    async def _cut(self, machine: Machine) -> bool:
        """Cut the power; false when the machine does not even answer."""
        try:
            await self._order(
                machine, "controlvm", machine.uuid, "poweroff", timeout=POWEROFF_TIMEOUT
            )
        except WrongState:
            return True  # it is between two states: what comes of it is looked at next
        except OperationTimedOut:
            return False
        return True

    async def reboot(self, label: str) -> None:
        await self._control(label, "reset")

    async def pause(self, label: str) -> None:
        try:
            await self._control(label, "pause")
        except WrongState:
            if await self.state(label) is not MachineState.PAUSED:
                raise

    async def resume(self, label: str) -> None:
        await self._control(label, "resume")

    # -- snapshots, pictures, memory, packets ---------------------------------------------------

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        machine = await self._machine(label)
        info = await self._show(machine)
        if STATES.get(info.word) not in {MachineState.RUNNING, MachineState.PAUSED}:
            raise WrongState(f"{label} is {info.word}, not running or paused")
        older = [one.uuid for one in info.snapshots if one.name == snapshot]
        await self._order(machine, "snapshot", machine.uuid, "take", snapshot, timeout=DISK_TIMEOUT)
        if older:
            await self._off(machine)  # disks are merged, which is surest while nothing uses them
        for uuid in older:
            await self._order(
                machine, "snapshot", machine.uuid, "delete", uuid, timeout=DISK_TIMEOUT
            )

    async def screenshot(self, label: str, path: Path) -> None:
        await self._write(label, path, SCREEN_TIMEOUT, "controlvm", "screenshotpng")

    async def dump_memory(self, label: str, path: Path) -> None:
        await self._write(label, path, DISK_TIMEOUT, "debugvm", "dumpvmcore", "--filename")

    async def _write(
        self, label: str, path: Path, timeout: float, command: str, *words: str
    ) -> None:
        """Let a command write a file beside ``path``, and move it there once it is complete."""
        machine = await self._machine(label)
        beside = path.absolute().with_name(f".{path.name}.new")
        try:
            beside.unlink(missing_ok=True)  # what is there already is refused
            await self._order(machine, command, machine.uuid, *words, str(beside), timeout=timeout)
            beside.rename(path)
        except OSError as exc:
            raise MachineryError(f"{label}: {command} wrote no {beside}: {exc}") from exc
        finally:
            beside.unlink(missing_ok=True)

    async def start_capture(self, label: str, path: Path) -> None:
        await self._control(label, "nictracefile1", str(path.absolute()))
        await self._control(label, "nictrace1", "on")

    async def stop_capture(self, label: str) -> None:
        with contextlib.suppress(WrongState):  # it is off: the file is finished
            await self._control(label, "nictrace1", "off")

    # -- looking --------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[StateChange]:
        return self._watch()

    async def _watch(self) -> AsyncGenerator[StateChange, None]:
        known: dict[str, MachineState] = {}
        changed: set[str] = set()
        async with Folders() as folders:
            self._watched.add(folders)
            try:
                while True:
                    async for label, info, state in self._look(changed):
                        folders.follow(label, info)
                        if known.get(label) is not state:
                            known[label] = state
                            yield StateChange(label, state, info.word)
                    changed = await folders.changed()
            finally:
                self._watched.discard(folders)

    async def _look(
        self, labels: set[str]
    ) -> AsyncGenerator[tuple[str, MachineInfo, MachineState], None]:
        """The machines of these labels that there are. No label: all, with one command."""
        every = {} if labels else {info.uuid: info for info in await self._glance()}
        for label in labels or [machine.label for machine in self.config.machines]:
            try:
                machine = await self._machine(label)
                info = every.get(machine.uuid) or await self._info(machine)
                yield label, info, self._state(machine, info)
            except BackendUnavailable:
                raise
            except MachineryError:
                continue  # whoever wants to use it is told why it cannot be

    async def inspect(self, label: str) -> MachineFacts:
        try:
            machine = await self._machine(label)
            info = await self._show(machine)
        except (BadConfig, WrongState) as exc:
            return MachineFacts(faults=(str(exc),))
        names = {one.uuid: one.name for one in info.snapshots}
        there: list[str] = []
        if info.hostonly:
            there = interfaces(await self._ask("list", "hostonlyifs", timeout=LIST_TIMEOUT))
        return MachineFacts(
            snapshots=tuple(names.values()),
            current_snapshot=names.get(info.current, ""),
            platform=info.platform,
            ip=await self._guest_ip(machine) if info.session else "",
            faults=tuple(
                f"{label}: its network is on {name}, which is not there, and its start would hang;"
                " VBoxManage hostonlyif create makes one"
                for name in info.hostonly
                if name not in there
            ),
        )

    async def _guest_ip(self, machine: Machine) -> str:
        """What the guest says of itself, if it is an address."""
        said = await self._ask("guestproperty", "get", machine.uuid, _ADDRESS, timeout=LIST_TIMEOUT)
        try:
            return str(ipaddress.ip_address(said.strip().rpartition("Value: ")[2]))
        except ValueError:
            return ""

    # -- one machine ----------------------------------------------------------------------------

    async def _ask(self, *words: str, timeout: float) -> str:
        """A question. Where VirtualBox is not there, clear away what keeps it from coming back."""
        try:
            return await self._manage.ask(*words, timeout=timeout)
        except BackendUnavailable:
            uuids = [machine.uuid for machine in self._machines.values()]
            await asyncio.to_thread(end_orphans, uuids)
            raise

    async def _list(self, timeout: float = LIST_TIMEOUT) -> list[tuple[str, str]]:
        return listed(await self._ask("list", "vms", timeout=timeout))

    async def _machine(self, label: str, there: list[tuple[str, str]] | None = None) -> Machine:
        """The machine of this name or UUID, asked for once and then known by its UUID."""
        if label in self._machines:
            return self._machines[label]
        there = there or await self._list()
        found = [uuid for name, uuid in there if label in (name, uuid)]
        if not found:
            names = ", ".join(names_of(there)) or "none"
            raise MachineNotFound(f"VirtualBox has no machine {label!r}; it has: {names}")
        if len(found) > 1:
            raise BadConfig(
                f"VirtualBox has {len(found)} machines called {label!r}; set the label to the UUID "
                f"of one: {', '.join(found)}"
            )
        return self._machines.setdefault(label, Machine(label, found[0]))

    async def _show(self, machine: Machine) -> MachineInfo:
        """All of the machine, with its snapshots."""
        async with machine.lock:
            with self._about(machine):
                answer = await self._ask(
                    "showvminfo", machine.uuid, "--machinereadable", timeout=LIST_TIMEOUT
                )
        info = shown(answer)
        if machine.label not in (info.name, info.uuid):
            self._machines.pop(machine.label, None)
            raise MachineNotFound(f"{machine.label}: VirtualBox calls this machine {info.name} now")
        return info

    async def _info(self, machine: Machine) -> MachineInfo:
        """The machine's state now, also while a command is at work on it or its process hangs."""
        loop = asyncio.get_running_loop()
        over = loop.time() + STATE_TIMEOUT
        patience = LOCK_TIMEOUT if machine.lock.locked() else SHOW_TIMEOUT
        try:
            async with asyncio.timeout(patience):
                return await self._show(machine)
        except (MachineNotFound, BackendUnavailable):
            raise
        except (TimeoutError, MachineryError) as exc:
            for info in await self._glance(over - loop.time()):
                if info.uuid == machine.uuid:
                    return info
            if isinstance(exc, MachineryError):
                raise
            raise BackendUnavailable(f"{machine.label}: VirtualBox does not answer") from exc

    async def _glance(self, timeout: float = LIST_TIMEOUT) -> list[MachineInfo]:
        """Every accessible machine's state, for which none has to be locked."""
        text = await self._ask("list", "vms", "--long", timeout=timeout)
        return list(listed_long(text))

    def _state(self, machine: Machine, info: MachineInfo) -> MachineState:
        state = STATES.get(info.word)
        if state is None:
            raise MachineryError(
                f"{machine.label}: VirtualBox says {info.word!r}, an unknown state"
            )
        dealt_with = state is MachineState.ABORTED and info.since == machine.ended
        return MachineState.POWEROFF if dealt_with else state

    async def _order(self, machine: Machine, *words: str, timeout: float = ORDER_TIMEOUT) -> None:
        # one that runs takes orders while others are carried out: a dump may take minutes
        alone = contextlib.nullcontext() if words[0] in _AT_ANY_TIME else machine.lock
        async with alone:
            with self._about(machine):
                await self._manage.run(*words, timeout=timeout)

    @contextlib.contextmanager
    def _about(self, machine: Machine) -> Iterator[None]:
        """Name the machine in what goes wrong, for VBoxManage is told its UUID."""
        try:
            yield
        except MachineNotFound:
            self._machines.pop(machine.label, None)
            raise
        except MachineryError as exc:
            raise type(exc)(f"{machine.label}: {exc}") from exc

    async def _control(self, label: str, *words: str) -> None:
        machine = await self._machine(label)
        await self._order(machine, "controlvm", machine.uuid, *words)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel what may have ended already, and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # somebody has looked at it
