"""The backend: one fresh QEMU process for each start, on a fresh overlay."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import structlog

from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    BadConfig,
    Capability,
    GuestAddress,
    MachineFacts,
    MachineNotFound,
    MachineryBackend,
    MachineState,
    SnapshotNotFound,
    StateChange,
    WrongState,
)
from cuckoo_machinery_qemu.accel import choose_accelerator
from cuckoo_machinery_qemu.bridge import BridgeNetwork
from cuckoo_machinery_qemu.files import (
    SNAPSHOT_TAG,
    STATE_SIZE,
    MachineFiles,
    copy,
    place,
    take_over,
)
from cuckoo_machinery_qemu.monitor import CommandFailed
from cuckoo_machinery_qemu.process import QemuProcess
from cuckoo_machinery_qemu.spec import (
    CONSOLE_SIZE,
    STATE_NODE,
    Drive,
    MachineSpec,
    command_line,
    machine_spec,
)
from cuckoo_machinery_qemu.usernet import UserNetwork

log = structlog.get_logger()

LOAD_TIMEOUT = 50.0
DUMP_TIMEOUT = 300.0
MAX_SCREEN = 64 << 20
MAX_CAPTURE = 4 << 30
_ON = (MachineState.RUNNING, MachineState.PAUSED)


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
        self._specs: dict[str, MachineSpec] = {}
        self._files: dict[str, MachineFiles] = {}
        self._running: dict[str, QemuProcess] = {}
        self._last: dict[str, MachineState] = {}
        self._captures: dict[str, Path] = {}
        self._streams: set[asyncio.Queue[StateChange | None]] = set()
        self._network: BridgeNetwork | UserNetwork | None = None
        self._accel = ""
        self._version = ""

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        path = Path(self.config.options["path"]).expanduser()
        for index, machine in enumerate(self.config.machines):
            files = MachineFiles(self.config.state_dir, machine.label)
            await asyncio.to_thread(_end_leftover, files)
            self._files[machine.label] = files
            self._specs[machine.label] = machine_spec(machine, index, path)
        specs = list(self._specs.values())
        self._version = await _version(path)
        self._accel = await choose_accelerator(
            self.config.options["accel"], specs, self._version, self.config.state_dir / "accel.json"
        )
        self._network = await self._open_network(specs)

    async def _open_network(self, specs: list[MachineSpec]) -> BridgeNetwork | UserNetwork:
        wanted = self.config.options["network"]
        if wanted == "bridge" or (wanted == "auto" and os.geteuid() == 0):
            bridge = BridgeNetwork(self.config.options["interface"], specs, self.config.services)
            try:
                await bridge.open()
            except (BackendUnavailable, OSError) as exc:
                if wanted == "bridge":
                    raise BadConfig(f"network = bridge: {exc}") from exc
                log.warning("qemu.no_bridge", error=str(exc), hint="using network = user")
            else:
                return bridge
        uid_base = int(self.config.options["uid_base"])
        # a name that no machine's folder can have
        note = self.config.state_dir / ".sockets"
        user = UserNetwork(specs, self.config.services, uid_base, note)
        await user.open()
        return user

    async def close(self) -> None:
        for label in list(self._running):
            await self._end(label)
        for stream in self._streams:
            stream.put_nowait(None)
        network, self._network = self._network, None
        if network is not None:
            await network.close()

    async def labels(self) -> list[str]:
        return list(self._specs)

    async def state(self, label: str) -> MachineState:
        self._spec(label)
        process = self._running.get(label)
        if process is None:
            return self._last.get(label, MachineState.POWEROFF)
        if process.state in _ON:
            try:
                answer = await process.monitor.run("query-status", timeout=5)
            except BackendUnavailable:
                await process.hung_up()  # it ended while it was asked: its end says how
            else:
                return MachineState.RUNNING if answer["running"] else MachineState.PAUSED
        return self._last.get(label, MachineState.POWEROFF)

    # -- power ----------------------------------------------------------------------------------

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        spec, files = self._spec(label), self._files[label]
        await self.power_off(label)
        folder = None
        if snapshot:
            folder = await asyncio.to_thread(files.check, snapshot, self._identity(spec))
        try:
            process = await self._launch(spec, folder)
            if folder is not None:
                await process.monitor.job(
                    "snapshot-load", LOAD_TIMEOUT,
                    tag=SNAPSHOT_TAG, vmstate=STATE_NODE, devices=[STATE_NODE],
                )  # fmt: skip
            await process.monitor.run("cont")
        except BaseException:
            await asyncio.shield(self._end(label))
            raise

    async def power_off(self, label: str) -> None:
        self._spec(label)
        await self._end(label)
        if self._last.get(label) is not MachineState.POWEROFF:
            self._last[label] = MachineState.POWEROFF
            self._tell(StateChange(label, MachineState.POWEROFF))

    async def reboot(self, label: str) -> None:
        await self._on(label, MachineState.RUNNING).monitor.run("system_reset")

    async def pause(self, label: str) -> None:
        await self._on(label, *_ON).monitor.run("stop")

    async def resume(self, label: str) -> None:
        await self._on(label, MachineState.PAUSED).monitor.run("cont")

    # -- snapshots, pictures, memory, packets ---------------------------------------------------

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        spec, files = self._spec(label), self._files[label]
        process = self._on(label, *_ON)
        files.snapshot(snapshot)
        monitor = process.monitor
        await monitor.run("stop")
        # of a snapshot that the machine was started from, the new one takes what it needs: it is
        # to stand on the image alone
        await monitor.job(
            "block-stream", DUMP_TIMEOUT,
            device="disk", base_node="layer0", backing_file=str(spec.image), auto_dismiss=False,
        )  # fmt: skip
        # one that the machine was started from is not to be kept beside the new one
        with contextlib.suppress(CommandFailed):
            await monitor.job(
                "snapshot-delete", LOAD_TIMEOUT, tag=SNAPSHOT_TAG, devices=[STATE_NODE]
            )
        await monitor.job(
            "snapshot-save", DUMP_TIMEOUT,
            tag=SNAPSHOT_TAG, vmstate=STATE_NODE, devices=[STATE_NODE],
        )  # fmt: skip
        # 'quit' flushes and closes the images; a kill might not
        process.expect_end()
        await monitor.run("quit")
        await process.gone()
        identity = self._identity(spec)
        await asyncio.to_thread(files.keep, snapshot, identity)
        await self.power_off(label)

    async def screenshot(self, label: str, path: Path) -> None:
        process = self._on(label, *_ON)
        await process.monitor.run("screendump", filename="screen.ppm", timeout=5)
        source = self._files[label].run / "screen.ppm"
        await asyncio.to_thread(take_over, source, path, limit=MAX_SCREEN)

    async def dump_memory(self, label: str, path: Path) -> None:
        spec, process = self._spec(label), self._on(label, *_ON)
        await process.monitor.dump("memory.dmp", DUMP_TIMEOUT)
        source = self._files[label].run / "memory.dmp"
        limit = (spec.memory + 256) << 20
        await asyncio.to_thread(take_over, source, path, limit=limit)

    async def start_capture(self, label: str, path: Path) -> None:
        process = self._on(label, *_ON)
        await process.monitor.run(
            "object-add", qom_type="filter-dump", id="capture", netdev="net0", file="capture.pcap"
        )
        self._captures[label] = path

    async def stop_capture(self, label: str) -> None:
        self._spec(label)
        path = self._captures.get(label)
        process = self._running.get(label)
        if path is None:
            return
        if process is not None and process.state in _ON:
            with contextlib.suppress(BackendUnavailable):  # it ended: the file is finished
                await process.monitor.run("object-del", id="capture")
        await self._keep_capture(label)

    async def _keep_capture(self, label: str) -> None:
        path = self._captures.pop(label, None)
        source = self._files[label].run / "capture.pcap"
        if path is not None and source.exists():
            await asyncio.to_thread(take_over, source, path, limit=MAX_CAPTURE)

    async def inspect(self, label: str) -> MachineFacts:
        spec, files = self._spec(label), self._files[label]
        names = await asyncio.to_thread(files.names)
        faults: tuple[str, ...] = ()
        if (wanted := self._wanted_snapshot(label)) in names:
            try:
                await asyncio.to_thread(files.check, wanted, self._identity(spec))
            except SnapshotNotFound as exc:
                faults = (str(exc),)
        return MachineFacts(snapshots=tuple(names), ip=spec.ip, faults=faults)

    async def console(self, label: str) -> bytes:
        process = self._on(label, *_ON)
        answer = await process.monitor.run(
            "ringbuf-read", device="console", size=CONSOLE_SIZE, format="base64"
        )
        return base64.b64decode(answer)

    # -- watching -------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[StateChange]:
        return self._watch()

    async def _watch(self) -> AsyncGenerator[StateChange, None]:
        stream: asyncio.Queue[StateChange | None] = asyncio.Queue()
        self._streams.add(stream)
        try:
            for label in self._specs:
                yield StateChange(label, await self.state(label))
            while (change := await stream.get()) is not None:
                yield change
        finally:
            self._streams.discard(stream)

    def address(self, label: str) -> GuestAddress:
        spec = self._spec(label)
        if self._network is None:
            raise BackendUnavailable(f"{label}: the backend is not open")
        port = next((s.port for s in self.config.services if s.name == "results"), 0)
        return self._network.address(spec, port)

    def _changed(self, change: StateChange) -> None:
        self._last[change.label] = change.state
        self._tell(change)

    def _tell(self, change: StateChange) -> None:
        for stream in self._streams:
            stream.put_nowait(change)

    # -- one process ----------------------------------------------------------------------------

    async def _launch(self, spec: MachineSpec, snapshot: Path | None) -> QemuProcess:
        """Start QEMU, paused, on a fresh overlay over the image or the snapshot's disk."""
        network = self._network
        if network is None:
            raise BackendUnavailable(f"{spec.label}: the backend is not open")
        files = self._files[spec.label]
        run = await asyncio.to_thread(files.fresh_run)
        bottom = "qcow2" if snapshot else spec.image_format
        base = snapshot / "disk.qcow2" if snapshot else spec.image
        await _qemu_img(run, "overlay.qcow2", "-b", str(base), "-F", bottom)
        if snapshot is None:
            await _qemu_img(run, "state.qcow2", str(STATE_SIZE))
        placed = await asyncio.to_thread(_furnish, spec, run, snapshot)
        uid = int(self.config.options["uid_base"]) + spec.index
        if os.geteuid() == 0:
            await asyncio.to_thread(_give_to, run, uid)
        drives: list[Drive] = []
        try:
            drives.append(Drive(os.open(spec.image, os.O_RDONLY), spec.image_format))
            if snapshot is not None:
                drives.append(Drive(os.open(snapshot / "disk.qcow2", os.O_RDONLY), "qcow2"))
            async with network.connect(spec) as (netdev, fds):
                guest_ip, gateway = network.guest_addresses(spec)
                command = command_line(
                    placed, accel=self._accel, layers=drives, netdev=netdev,
                    guest_ip=guest_ip, guest_gateway=gateway, state=True,
                )  # fmt: skip
                process = QemuProcess(spec.label, self._changed)
                self._running[spec.label] = process
                await process.start(
                    [*self._wrapper(spec, uid), *command],
                    cwd=run,
                    fds=[*fds, *(drive.fd for drive in drives)],
                    pidfile=files.pidfile,
                )
        finally:
            for drive in drives:
                os.close(drive.fd)
        return process

    def _wrapper(self, spec: MachineSpec, uid: int) -> list[str]:
        """What takes QEMU's rights away, and ties its life to ours."""
        words: list[str] = []
        if os.geteuid() == 0:
            words = [
                "setpriv", f"--reuid={uid}", f"--regid={uid}", *self._groups(),
                "--no-new-privs", "--pdeathsig=KILL", "--",
            ]  # fmt: skip
        if isinstance(self._network, UserNetwork):
            words += self._network.launcher(spec)
        elif not words:
            words = ["setpriv", "--no-new-privs", "--pdeathsig=KILL", "--"]
        return words

    def _groups(self) -> list[str]:
        """KVM's device is its group's; nothing else needs one."""
        if self._accel == "kvm":
            return [f"--groups={Path('/dev/kvm').stat().st_gid}"]
        return ["--clear-groups"]

    async def _end(self, label: str) -> None:
        """Kill the machine's QEMU if there is one, save its capture, remove what it wrote."""
        process = self._running.get(label)
        if process is None:
            return
        await process.kill()
        with contextlib.suppress(BackendUnavailable):
            await self._keep_capture(label)
        await asyncio.to_thread(self._files[label].remove_run)
        if self._running.get(label) is process:
            del self._running[label]

    def _identity(self, spec: MachineSpec) -> dict[str, str]:
        kind = self._network.kind if self._network else ""
        return spec.identity(accel=self._accel, network=kind, version=self._version)

    def _wanted_snapshot(self, label: str) -> str:
        return next(m.snapshot for m in self.config.machines if m.label == label)

    def _spec(self, label: str) -> MachineSpec:
        try:
            return self._specs[label]
        except KeyError:
            there = ", ".join(self._specs) or "none"
            raise MachineNotFound(f"qemu has no machine {label!r}; it has: {there}") from None

    def _on(self, label: str, *states: MachineState) -> QemuProcess:
        self._spec(label)
        process = self._running.get(label)
        state = process.state if process else self._last.get(label, MachineState.POWEROFF)
        if process is None or state not in states:
            raise WrongState(f"{label} is {state.value}, not {' or '.join(states)}")
        return process


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


async def _qemu_img(run: Path, name: str, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "qemu-img", "create", "-q", "-f", "qcow2", str(run / name), *words,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    if process.returncode:
        raise BackendUnavailable(f"qemu-img: {' '.join(errors.decode(errors='replace').split())}")


def _furnish(spec: MachineSpec, run: Path, snapshot: Path | None) -> MachineSpec:
    """Put the kernel, and the snapshot's memory, into the run folder; the spec that names them.

    The memory is a private copy: loading writes to it, and a QEMU in a guest's hands must not
    be able to change what the next analysis starts from.
    """
    for source, name in ((spec.kernel, "kernel"), (spec.initrd, "initrd")):
        if source is not None:
            place(source, run / name)
    if snapshot is not None:
        copy(snapshot / "state.qcow2", run / "state.qcow2")
    return dataclasses.replace(
        spec,
        kernel=spec.kernel and Path("kernel"),
        initrd=spec.initrd and Path("initrd"),
    )


def _give_to(run: Path, uid: int) -> None:
    for path in run.iterdir():
        if path.stat().st_nlink == 1:  # a hard link is somebody else's file
            os.chown(path, uid, uid)
    os.chown(run, uid, uid)


def _end_leftover(files: MachineFiles) -> None:
    """Kill a QEMU of an earlier process that, against all odds, still runs; remove its files."""
    try:
        pid = int(files.pidfile.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        where = Path(f"/proc/{pid}/cwd").readlink()
    except (OSError, ValueError):
        pass
    else:
        if f"cuckoo-{files.root.name}".encode() in words and where == files.run.resolve():
            log.warning("qemu.leftover", pid=pid, label=files.root.name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    files.remove_run()
