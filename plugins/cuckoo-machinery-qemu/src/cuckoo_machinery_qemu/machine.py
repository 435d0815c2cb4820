"""One machine: a fresh QEMU process for each start, on a fresh overlay."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cuckoo_api.machinery import (
    BackendUnavailable,
    BadConfig,
    MachineConfig,
    MachineFacts,
    MachineState,
    SnapshotNotFound,
    StateChange,
    WrongState,
)
from cuckoo_machinery_qemu.bridge import BridgeNetwork
from cuckoo_machinery_qemu.files import SNAPSHOT_TAG, STATE_SIZE, MachineFiles, furnish, give_to
from cuckoo_machinery_qemu.monitor import Monitor
from cuckoo_machinery_qemu.process import QemuProcess
from cuckoo_machinery_qemu.records import Capture
from cuckoo_machinery_qemu.rooted import RootedNetwork
from cuckoo_machinery_qemu.spec import (
    STATE_NODE,
    Drive,
    MachineSpec,
    Place,
    command_line,
    machine_spec,
)
from cuckoo_machinery_qemu.usernet import UserNetwork

LOAD_TIMEOUT = 50.0
Network = BridgeNetwork | RootedNetwork | UserNetwork
ON = (MachineState.RUNNING, MachineState.PAUSED)
"""States in which there is a QEMU to speak to."""


@dataclass(slots=True)
class Host:
    """What all machines share; the backend fills it in when it opens."""

    path: Path = Path()
    uid_base: int = 0
    version: str = ""
    accel: str = ""
    network: Network | None = None

    def connected(self, label: str) -> Network:
        """The network; BackendUnavailable before the backend is open."""
        if self.network is None:
            raise BackendUnavailable(f"{label}: the backend is not open")
        return self.network

    def rights(self, uid: int) -> list[str]:
        """The words before a program that take our rights from it, and tie its life to ours."""
        words = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
        if os.geteuid() == 0:
            words += [f"--reuid={uid}", f"--regid={uid}"]
            # KVM's device is its group's; nothing else needs one
            kvm = self.accel == "kvm"
            words.append(f"--groups={Path('/dev/kvm').stat().st_gid}" if kvm else "--clear-groups")
        return [*words, "--"]


class Machine:
    """A machine of the configuration, with at most one QEMU."""

    def __init__(
        self,
        config: MachineConfig,
        index: int,
        state_dir: Path,
        host: Host,
        tell: Callable[[StateChange], None],
    ) -> None:
        """``tell`` hears of every change of state. Raises BadConfig for a label that cannot be."""
        self.label = config.label
        self.place = Place(config.label, index, config.ip, config.resultserver_ip)
        self.files = MachineFiles(state_dir, config.label)
        self.capture = Capture(self.files.run / "capture.pcap")
        self.process: QemuProcess | None = None
        self._config = config
        self._host = host
        self._tell = tell
        self._last = MachineState.POWEROFF

    def spec(self) -> MachineSpec:
        """What the configuration says, checked against what is there now. Raises BadConfig.

        It looks at files; call it in a thread.
        """
        return machine_spec(self._config, self.place.index, self._host.path)

    def identity(self, spec: MachineSpec) -> dict[str, str]:
        """What must be as it was for a live snapshot to fit."""
        kind = self._host.network.kind if self._host.network else ""
        return spec.identity(accel=self._host.accel, network=kind, version=self._host.version)

    # -- what it is -----------------------------------------------------------------------------

    async def state(self) -> MachineState:
        """From QEMU, where there is one."""
        process = self.process
        if process is not None and process.state in ON:
            try:
                answer = await process.monitor.run("query-status", timeout=5)
            except BackendUnavailable:
                await process.hung_up()  # it ended while it was asked: its end says how
            else:
                return MachineState.RUNNING if answer["running"] else MachineState.PAUSED
        return self._last

    def on(self, *states: MachineState) -> QemuProcess:
        """Its QEMU, which is in one of these states; else WrongState."""
        state = self.process.state if self.process else self._last
        if self.process is None or state not in states:
            raise WrongState(f"{self.label} is {state.value}, not {' or '.join(states)}")
        return self.process

    async def facts(self) -> MachineFacts:
        """Its snapshots, and why it cannot be started where it cannot."""
        return await asyncio.to_thread(self._facts)

    def _facts(self) -> MachineFacts:
        names, faults = self.files.names(), []
        try:
            spec = self.spec()
            if self._config.snapshot in names:
                self.files.check(self._config.snapshot, self.identity(spec))
        except (BadConfig, SnapshotNotFound) as exc:
            faults.append(str(exc))
        return MachineFacts(snapshots=tuple(names), ip=self.place.ip, faults=tuple(faults))

    # -- power ----------------------------------------------------------------------------------

    async def restore_and_start(self, snapshot: str) -> None:
        """Let a new QEMU run, from the snapshot or from the disk; the one before is ended."""
        await self.power_off()
        spec, folder = await asyncio.to_thread(self._wanted, snapshot)
        try:
            monitor = await self._launch(spec, folder)
            if folder is not None:
                await monitor.job(
                    "snapshot-load", LOAD_TIMEOUT,
                    tag=SNAPSHOT_TAG, vmstate=STATE_NODE, devices=[STATE_NODE],
                )  # fmt: skip
            await monitor.run("cont")
        except BaseException:
            await asyncio.shield(self.end())
            raise

    def _wanted(self, snapshot: str) -> tuple[MachineSpec, Path | None]:
        """What is to be started, and the snapshot's folder, if any."""
        spec = self.spec()
        return spec, self.files.check(snapshot, self.identity(spec)) if snapshot else None

    async def power_off(self) -> None:
        """End its QEMU; it is off, whatever it was."""
        await self.end()
        if self._last is not MachineState.POWEROFF:
            self._changed(StateChange(self.label, MachineState.POWEROFF))

    async def end(self) -> None:
        """Kill its QEMU if there is one, save its capture, remove what it wrote."""
        process = self.process
        if process is not None:
            await process.kill()
            with contextlib.suppress(BackendUnavailable):
                await self.capture.keep()
            await asyncio.to_thread(self.files.remove_run)
            if self.process is process:
                self.process = None
        if self._host.network is not None:
            await self._host.network.disconnect(self.place)

    def _changed(self, change: StateChange) -> None:
        self._last = change.state
        self._tell(change)

    # -- its QEMU -------------------------------------------------------------------------------

    async def _launch(self, spec: MachineSpec, snapshot: Path | None) -> Monitor:
        """Start QEMU, paused, on a fresh overlay over the image or the snapshot's disk."""
        network = self._host.connected(self.label)
        preparing = asyncio.create_task(self._prepare(spec, snapshot))
        try:
            placed = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            # threads and programs are at work in the run folder, which the next start makes anew
            await asyncio.wait({preparing})
            if not preparing.cancelled():
                preparing.exception()  # nobody else asks for it
            raise
        drives: list[Drive] = []
        try:
            drives.append(Drive(os.open(spec.image, os.O_RDONLY), spec.image_format))
            if snapshot is not None:
                drives.append(Drive(os.open(snapshot / "disk.qcow2", os.O_RDONLY), "qcow2"))
            async with network.connect(self.place) as (netdev, fds):
                command = command_line(
                    placed, accel=self._host.accel, layers=drives, netdev=netdev, state=True
                )  # fmt: skip
                process = self.process = QemuProcess(self.label, self._changed)
                await process.start(
                    [*self._host.rights(self._uid), *network.launcher(self.place), *command],
                    cwd=self.files.run,
                    fds=[*fds, *(drive.fd for drive in drives)],
                    pidfile=self.files.pidfile,
                )
        finally:
            for drive in drives:
                os.close(drive.fd)
        return process.monitor

    async def _prepare(self, spec: MachineSpec, snapshot: Path | None) -> MachineSpec:
        """Fill a fresh run folder. Returns the machine with what has been placed there."""
        run = await asyncio.to_thread(self.files.fresh_run)
        bottom = "qcow2" if snapshot else spec.image_format
        base = snapshot / "disk.qcow2" if snapshot else spec.image
        await _qemu_img(run, "overlay.qcow2", "-b", str(base), "-F", bottom)
        if snapshot is None:
            await _qemu_img(run, "state.qcow2", str(STATE_SIZE))
        placed = await asyncio.to_thread(furnish, spec, run, snapshot)
        if os.geteuid() == 0:
            await asyncio.to_thread(give_to, run, self._uid)
        return placed

    @property
    def _uid(self) -> int:
        """The user id of its QEMU, where we may choose it."""
        return self._host.uid_base + self.place.index


async def _qemu_img(run: Path, name: str, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "qemu-img", "create", "-q", "-f", "qcow2", str(run / name), *words,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    if process.returncode:
        raise BackendUnavailable(f"qemu-img: {' '.join(errors.decode(errors='replace').split())}")
