"""The backend: QEMU run directly, one process for each machine that is on."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import structlog

from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    BadConfig,
    Capability,
    GuestAddress,
    MachineConfig,
    MachineFacts,
    MachineNotFound,
    MachineryBackend,
    MachineState,
    StateChange,
)
from cuckoo_machinery_qemu import records
from cuckoo_machinery_qemu.accel import choose_accelerator
from cuckoo_machinery_qemu.bridge import BridgeNetwork
from cuckoo_machinery_qemu.machine import ON, Host, Machine, Network
from cuckoo_machinery_qemu.rooted import RootedNetwork
from cuckoo_machinery_qemu.spec import MachineSpec, Place
from cuckoo_machinery_qemu.usernet import UserNetwork

log = structlog.get_logger()


class QemuBackend(MachineryBackend):
    """QEMU run directly. Each machine's QEMU dies with this process, however it dies."""

    capabilities = (
        Capability.REBOOT
        | Capability.PAUSE
        | Capability.SNAPSHOT
        | Capability.SCREENSHOT
        | Capability.MEMORY_DUMP
        | Capability.CAPTURE
        | Capability.WATCH
        | Capability.ADDRESS
        | Capability.CONSOLE
        | Capability.INSPECT
    )

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        self._machines: dict[str, Machine] = {}
        self._refused: dict[str, str] = {}
        """Labels that cannot be, with the reason."""
        self._streams: set[asyncio.Queue[StateChange | None]] = set()
        self._host = Host()

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        host, options = self._host, self.config.options
        host.path, host.uid_base = Path(options["path"]).expanduser(), int(options["uid_base"])
        for index, config in enumerate(self.config.machines):
            await self._take_in(config, index)
        host.version = await _version(host.path)
        cache = self.config.state_dir / "accel.json"
        host.accel = await choose_accelerator(
            options["accel"], await asyncio.to_thread(self._usable), host.version, cache
        )
        host.network = await self._open_network([m.place for m in self._machines.values()])

    async def _take_in(self, config: MachineConfig, index: int) -> None:
        """Know a machine. One that cannot be must not keep the others from being used."""
        try:
            machine = Machine(config, index, self.config.state_dir, self._host, self._tell)
        except BadConfig as exc:
            self._refused[config.label] = str(exc)
            return
        await asyncio.to_thread(machine.files.end_leftover)
        self._machines[config.label] = machine

    def _usable(self) -> list[MachineSpec]:
        specs = []
        for machine in self._machines.values():
            try:
                specs.append(machine.spec())
            except BadConfig:
                continue  # its facts tell
        return specs

    async def _open_network(self, places: list[Place]) -> Network:
        wanted, taps = self.config.options["network"], self.config.taps
        name = self.config.options["interface"]
        if wanted != "user" and taps is not None and name in taps.bridges:
            # whoever we are: a bridge has one maker
            rooted = RootedNetwork(name, taps, self._host.rights(self._host.uid_base))
            for place in places:
                if fault := rooted.misfit(place):
                    self._refused[place.label] = fault
            await rooted.open()
            return rooted
        if wanted == "bridge" or (wanted == "auto" and os.geteuid() == 0):
            bridge = BridgeNetwork(name, places, self.config.services)
            try:
                await bridge.open()
            except (BackendUnavailable, OSError) as exc:
                if wanted == "bridge":
                    raise BadConfig(f"network = bridge: {exc}") from exc
                log.warning("qemu.no_bridge", error=str(exc), hint="using network = user")
            else:
                return bridge
        # a name that no machine's folder can have
        note = self.config.state_dir / ".sockets"
        user = UserNetwork(places, self.config.services, self._host.uid_base, note)
        await user.open()
        return user

    async def close(self) -> None:
        for machine in self._machines.values():
            await machine.end()
        for stream in self._streams:
            stream.put_nowait(None)
        network, self._host.network = self._host.network, None
        if network is not None:
            await network.close()

    async def labels(self) -> list[str]:
        return [machine.label for machine in self.config.machines]

    async def state(self, label: str) -> MachineState:
        return await self._machine(label).state()

    # -- power ----------------------------------------------------------------------------------

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        await self._machine(label).restore_and_start(snapshot)

    async def power_off(self, label: str) -> None:
        await self._machine(label).power_off()

    async def reboot(self, label: str) -> None:
        await self._machine(label).on(MachineState.RUNNING).monitor.run("system_reset")

    async def pause(self, label: str) -> None:
        await self._machine(label).on(*ON).monitor.run("stop")

    async def resume(self, label: str) -> None:
        await self._machine(label).on(MachineState.PAUSED).monitor.run("cont")

    # -- snapshots, pictures, memory, packets ---------------------------------------------------

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        machine = self._machine(label)
        await records.take_snapshot(machine, machine.on(*ON), snapshot)

    async def screenshot(self, label: str, path: Path) -> None:
        machine = self._machine(label)
        await records.screenshot(machine.on(*ON).monitor, machine.files.run, path)

    async def dump_memory(self, label: str, path: Path) -> None:
        machine = self._machine(label)
        monitor = machine.on(*ON).monitor
        spec = await asyncio.to_thread(machine.spec)
        await records.dump_memory(monitor, machine.files.run, path, memory=spec.memory)

    async def start_capture(self, label: str, path: Path) -> None:
        machine = self._machine(label)
        await machine.capture.start(machine.on(*ON).monitor, path)

    async def stop_capture(self, label: str) -> None:
        machine = self._machine(label)
        process = machine.process
        on = process is not None and process.state in ON
        await machine.capture.stop(process.monitor if process and on else None)

    async def console(self, label: str) -> bytes:
        return await records.console(self._machine(label).on(*ON).monitor)

    async def inspect(self, label: str) -> MachineFacts:
        if label in self._refused:
            return MachineFacts(faults=(self._refused[label],))
        return await self._machine(label).facts()

    # -- watching -------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[StateChange]:
        return self._watch()

    async def _watch(self) -> AsyncGenerator[StateChange, None]:
        stream: asyncio.Queue[StateChange | None] = asyncio.Queue()
        self._streams.add(stream)
        try:
            for label, machine in self._machines.items():
                yield StateChange(label, await machine.state())
            while (change := await stream.get()) is not None:
                yield change
        finally:
            self._streams.discard(stream)

    def _tell(self, change: StateChange) -> None:
        for stream in self._streams:
            stream.put_nowait(change)

    def address(self, label: str) -> GuestAddress:
        machine = self._machine(label)
        port = next((s.port for s in self.config.services if s.name == "results"), 0)
        return self._host.connected(label).address(machine.place, port)

    def _machine(self, label: str) -> Machine:
        if label in self._refused:
            raise BadConfig(self._refused[label])
        try:
            return self._machines[label]
        except KeyError:
            there = ", ".join(self._machines) or "none"
            raise MachineNotFound(f"qemu has no machine {label!r}; it has: {there}") from None


async def _version(path: Path) -> str:
    if not path.is_file():
        raise BadConfig(
            f"there is no {path}; install it (apt-get install qemu-system-x86) or set [qemu] path"
        )
    process = await asyncio.create_subprocess_exec(
        str(path), "--version", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    found = re.search(rb"version (\S+)", output)
    if found is None:
        raise BadConfig(f"{path} --version does not answer as QEMU does")
    return found[1].decode()
