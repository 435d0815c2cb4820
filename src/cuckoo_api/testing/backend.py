"""The fake hypervisor's backend and the plugin object that registers it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import dpkt

from cuckoo_api.machinery import (
    API_VERSION,
    BackendConfig,
    BadConfig,
    Capability,
    GuestAddress,
    MachineFacts,
    MachineryBackend,
    MachineryError,
    MachineryPlugin,
    MachineState,
    NotSupported,
    Option,
    StateChange,
    hookimpl,
)
from cuckoo_api.testing.modes import Snapshot
from cuckoo_api.testing.world import FakeHypervisor

ALL = ~Capability.NONE
"""Every capability."""

_ON = (MachineState.RUNNING, MachineState.PAUSED)


class FakeBackend(MachineryBackend):
    """Drives a :class:`FakeHypervisor`. A capability taken from it raises NotSupported."""

    capabilities = ALL

    def __init__(self, config: BackendConfig, world: FakeHypervisor) -> None:
        super().__init__(config)
        self._world = world
        self._captures: dict[str, Path] = {}
        self._shots = 0
        self._opened = False

    async def open(self) -> None:
        async def effect() -> None:
            self._opened = True
            self._world.open_backends += 1

        await self._world.perform("open", "", effect)

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            self._world.open_backends -= 1

    async def labels(self) -> list[str]:
        async def effect() -> list[str]:
            return list(self._world.machines)

        return await self._world.perform("labels", "", effect)

    async def state(self, label: str) -> MachineState:
        async def effect() -> MachineState:
            return self._world.machines[label].state

        return await self._world.perform("state", label, effect)

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        await self._world.restore_and_start(label, snapshot)

    async def power_off(self, label: str) -> None:
        await self._world.power_off(label)

    async def reboot(self, label: str) -> None:
        self._need(Capability.REBOOT)
        await self._world.reboot(label)

    async def pause(self, label: str) -> None:
        self._need(Capability.PAUSE)
        await self._world.set_paused(label, paused=True)

    async def resume(self, label: str) -> None:
        self._need(Capability.PAUSE)
        await self._world.set_paused(label, paused=False)

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        self._need(Capability.SNAPSHOT)

        async def effect() -> None:
            machine = self._world.require(label, *_ON)
            machine.snapshots[snapshot] = Snapshot(dict(machine.disk), dict(machine.memory))

        await self._world.perform("take_snapshot", label, effect)

    async def screenshot(self, label: str, path: Path) -> None:
        self._need(Capability.SCREENSHOT)

        async def effect() -> None:
            self._world.require(label, *_ON)
            self._shots += 1  # each one looks different, as a screen that changes does
            colour = bytes((self._shots * 40 % 256, 80, 160))
            _write(path, b"P6\n16 12\n255\n" + colour * (16 * 12))

        await self._world.perform("screenshot", label, effect)

    async def dump_memory(self, label: str, path: Path) -> None:
        self._need(Capability.MEMORY_DUMP)

        async def effect() -> None:
            memory = self._world.require(label, *_ON).memory
            _write(path, json.dumps({key: value.hex() for key, value in memory.items()}).encode())

        await self._world.perform("dump_memory", label, effect)

    async def start_capture(self, label: str, path: Path) -> None:
        self._need(Capability.CAPTURE)

        async def effect() -> None:
            self._world.require(label, *_ON)
            _write_capture(path)
            self._captures[label] = path

        await self._world.perform("start_capture", label, effect)

    async def stop_capture(self, label: str) -> None:
        self._need(Capability.CAPTURE)

        async def effect() -> None:
            self._captures.pop(label, None)

        await self._world.perform("stop_capture", label, effect)

    def watch(self) -> AsyncIterator[StateChange]:
        self._need(Capability.WATCH)
        return self._watch()

    async def _watch(self) -> AsyncGenerator[StateChange, None]:
        self._world.check()
        stream = self._world.subscribe()
        try:
            for config in self.config.machines:
                machine = self._world.machines.get(config.label)
                if machine is not None:
                    yield StateChange(config.label, machine.state)
            while (item := await stream.get()) is not None:
                if isinstance(item, MachineryError):
                    raise item
                yield item
        finally:
            self._world.unsubscribe(stream)

    def address(self, label: str) -> GuestAddress:
        self._need(Capability.ADDRESS)
        ports = {s.name: s.port for s in self.config.services if s.protocol == "tcp"}
        for config in self.config.machines:
            if config.label == label:
                ports["results"] = config.resultserver_port
                return self._world.address(label, config.resultserver_ip or "192.168.55.1", ports)
        raise BadConfig(f"{label}: not a machine of {self.config.name}")

    async def console(self, label: str) -> bytes:
        self._need(Capability.CONSOLE)

        async def effect() -> bytes:
            history = self._world.history(label)
            return f"{label}: {', '.join(history)}\r\n".encode()[-(64 << 10) :]

        return await self._world.perform("console", label, effect)

    async def inspect(self, label: str) -> MachineFacts:
        self._need(Capability.INSPECT)

        async def effect() -> MachineFacts:
            return self._world.facts(label)

        return await self._world.perform("inspect", label, effect)

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            name = (capability.name or "").lower()
            raise NotSupported(f"{self.config.name}: {name}")


class _Registration:
    """The object that pluggy takes: what a plugin's module is otherwise."""

    def __init__(self, plugin: MachineryPlugin) -> None:
        self._plugin = plugin

    @hookimpl
    def cuckoo_register_machinery(self) -> MachineryPlugin:
        return self._plugin


def fake_plugin(
    world: FakeHypervisor,
    *,
    name: str = "fake",
    capabilities: Capability = ALL,
    api_version: tuple[int, int] = API_VERSION,
) -> object:
    """A plugin object for ``load_plugins(extra=[...])`` whose backends drive ``world``."""

    class Backend(FakeBackend):
        pass

    Backend.capabilities = capabilities
    return _Registration(
        MachineryPlugin(
            name=name,
            api_version=api_version,
            backend=lambda config: Backend(config, world),
            options=(Option("colour", "grey", help="Means nothing."),),
            default_conf=f"[{name}]\nmachines =\n",
        )
    )


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write_capture(path: Path) -> None:
    """A pcap with one DNS question in it."""
    question = dpkt.dns.DNS(qd=[dpkt.dns.DNS.Q(name="fake.example")])
    udp = dpkt.udp.UDP(sport=40000, dport=53, data=bytes(question))
    udp.ulen = len(udp)
    guest, host = bytes((192, 168, 55, 11)), bytes((192, 168, 55, 1))
    packet = dpkt.ip.IP(src=guest, dst=host, p=dpkt.ip.IP_PROTO_UDP, data=udp)
    packet.len = len(packet)
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        writer.writepkt(bytes(dpkt.ethernet.Ethernet(data=packet)), ts=1_700_000_000)
