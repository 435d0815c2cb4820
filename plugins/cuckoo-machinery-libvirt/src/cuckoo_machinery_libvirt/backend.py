"""The backend: the contract's calls, each in a thread of the link that suits it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import shutil
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import libvirt
import structlog

from cuckoo_api.machinery import (
    BackendConfig,
    BadConfig,
    Capability,
    MachineFacts,
    MachineNotFound,
    MachineryBackend,
    MachineryError,
    MachineState,
    StateChange,
)
from cuckoo_machinery_libvirt import capture, machine
from cuckoo_machinery_libvirt.errors import Uri
from cuckoo_machinery_libvirt.events import state_after, state_of
from cuckoo_machinery_libvirt.link import Link, Live
from cuckoo_machinery_libvirt.threads import ended

log = structlog.get_logger()

T = TypeVar("T")

OPEN_TIMEOUT = 25.0
ASK_TIMEOUT = 4.5
ORDER_TIMEOUT = 9.0
LONG_TIMEOUT = 3600.0
"""For what the core sets the deadline of: it only keeps a call from hanging for ever."""
REOPEN = (0.2, 5.0)
"""Seconds between attempts to hear from a libvirt that is away: from, doubled up to."""
FORMATS = {
    "raw": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW,
    "kdump-zlib": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_KDUMP_ZLIB,
    "kdump-lzo": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_KDUMP_LZO,
    "kdump-snappy": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_KDUMP_SNAPPY,
}
_SET_OFF = (MachineState.ABORTED, MachineState.SAVED)
"""What a machine may be that is powered off without an event of libvirt's."""


@dataclass
class Start:
    """A start in a thread; it may outlive the call that ordered it."""

    future: Future[None]
    given_up: threading.Event


class LibvirtBackend(MachineryBackend):
    """The machines of one libvirt URI.

    Four connections: a memory dump must not keep a start waiting, nor that a question.
    """

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
        self._uri = Uri(config.options["dsn"])
        self._about = f"libvirt at {self._uri.shown}"
        self._ask = Link(self._uri, "ask", self._on_event)
        self._order = Link(self._uri, "order")
        self._start = Link(self._uri, "start")
        self._long = Link(self._uri, "long")
        self._spool = config.state_dir / "captures"
        self._starts: dict[str, Start] = {}
        self._captures: dict[str, capture.Capturing] = {}
        self._settled: set[str] = set()
        """Machines that were powered off and have not run since. Of one that had ended badly, or
        whose start was broken off, libvirt goes on to say so."""
        self._streams: set[asyncio.Queue[StateChange | None]] = set()
        self._closing = False

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        if not self._uri.text:
            raise BadConfig("[kvm] dsn is empty; set it to libvirt's URI, as qemu:///system")
        live = await self._ask.connect(OPEN_TIMEOUT)
        work = functools.partial(machine.qemu_can_capture, labels=self._configured())
        captures = await self._ask.call(self._about, work, OPEN_TIMEOUT)
        await asyncio.to_thread(_fresh, self._spool)
        if not self._uri.local:
            # libvirt writes dumps where it runs
            self.capabilities &= ~(Capability.MEMORY_DUMP | Capability.CAPTURE)
        if not captures:
            self.capabilities &= ~Capability.CAPTURE
        if live.events is None:
            self.capabilities &= ~Capability.WATCH

    async def close(self) -> None:
        self._closing = True
        for stream in self._streams:
            stream.put_nowait(None)
        for start in self._starts.values():
            start.given_up.set()
        await asyncio.gather(*(ended(start.future, 5) for start in self._starts.values()))
        links = (self._ask, self._order, self._start, self._long)
        await asyncio.gather(*(link.close() for link in links))

    async def labels(self) -> list[str]:
        return await self._ask.call(self._about, _names, ASK_TIMEOUT)

    async def state(self, label: str) -> MachineState:
        state = await self._on(self._ask, label, state_of, ASK_TIMEOUT)
        if state in machine.ON:
            self._settled.discard(label)
        return MachineState.POWEROFF if self._is_settled(label, state) else state

    async def inspect(self, label: str) -> MachineFacts:
        snapshots = {m.label: m.snapshot for m in self.config.machines}

        def work(domain: libvirt.virDomain) -> MachineFacts:
            return machine.inspect(domain, snapshots.get(label), snapshots)

        return await self._on(self._ask, label, work, ASK_TIMEOUT)

    # -- power ----------------------------------------------------------------------------------

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        await self._earlier_start(label)
        given_up = threading.Event()
        future = await self._start.submit(
            label, _with(label, lambda domain: machine.restore(domain, snapshot, given_up))
        )
        self._starts[label] = Start(future, given_up)
        self._settled.discard(label)
        try:
            await self._start.result(label, future, _in(LONG_TIMEOUT))
        finally:
            given_up.set()

    async def power_off(self, label: str) -> None:
        deadline = _in(ORDER_TIMEOUT)
        await self._earlier_start(label)
        future = await self._order.submit(label, _with(label, machine.power_off))
        before = await self._order.result(label, future, deadline)
        self._settled.add(label)
        if before in _SET_OFF:
            self._tell(StateChange(label, MachineState.POWEROFF))

    async def reboot(self, label: str) -> None:
        def work(domain: libvirt.virDomain) -> None:
            machine.require(domain, MachineState.RUNNING)
            domain.reset()

        await self._on(self._order, label, work, ORDER_TIMEOUT)

    async def pause(self, label: str) -> None:
        await self._on(self._order, label, machine.pause, ORDER_TIMEOUT)

    async def resume(self, label: str) -> None:
        def work(domain: libvirt.virDomain) -> None:
            machine.require(domain, MachineState.PAUSED)
            domain.resume()

        await self._on(self._order, label, work, ORDER_TIMEOUT)

    async def _earlier_start(self, label: str) -> None:
        """Let a start of this machine that still runs in its thread come to its end.

        libvirt refuses to power off a machine that is being restored, and one that is powered
        off before would be started after.
        """
        start = self._starts.pop(label, None)
        if start is None or start.future.done():
            return
        start.given_up.set()
        if not await ended(start.future, ORDER_TIMEOUT - 1):
            self._starts[label] = start

    # -- snapshots, pictures, memory, packets ---------------------------------------------------

    async def take_snapshot(self, label: str, snapshot: str) -> None:
        work = functools.partial(machine.take_snapshot, name=snapshot)
        await self._on(self._long, label, work, LONG_TIMEOUT)

    async def screenshot(self, label: str, path: Path) -> None:
        picture = await self._on(self._order, label, machine.screenshot, ASK_TIMEOUT)
        with _files_of(label):
            await asyncio.to_thread(machine.write, path, picture)

    async def dump_memory(self, label: str, path: Path) -> None:
        if Capability.MEMORY_DUMP not in self.capabilities:
            await super().dump_memory(label, path)
        kind = FORMATS[self.config.options["dump_format"]]
        work = functools.partial(machine.dump_memory, path=path, kind=kind)
        await self._on(self._long, label, work, LONG_TIMEOUT)

    async def start_capture(self, label: str, path: Path) -> None:
        if Capability.CAPTURE not in self.capabilities:
            await super().start_capture(label, path)
        spool = self._spool / secrets.token_hex(8)

        def work(domain: libvirt.virDomain) -> capture.Capturing:
            machine.require(domain, *machine.ON)
            return capture.begin(domain, spool, path)

        self._captures[label] = await self._on(self._order, label, work, ORDER_TIMEOUT)

    async def stop_capture(self, label: str) -> None:
        if Capability.CAPTURE not in self.capabilities:
            await super().stop_capture(label)
        under_way = self._captures.pop(label, None)
        if under_way is None:
            await self.state(label)  # a label that nobody knows is an error all the same
            return
        with contextlib.suppress(MachineryError):  # it has gone: the file is finished
            await self._on(self._order, label, capture.end, ORDER_TIMEOUT)
        with _files_of(label):
            await asyncio.to_thread(capture.keep, under_way)

    # -- watching -------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[StateChange]:
        if Capability.WATCH not in self.capabilities:
            return super().watch()
        return self._watch()

    async def _watch(self) -> AsyncGenerator[StateChange, None]:
        stream: asyncio.Queue[StateChange | None] = asyncio.Queue()
        self._streams.add(stream)
        away, pause = "", REOPEN[0]
        try:
            while True:
                try:
                    live = await self._ask.connect(OPEN_TIMEOUT)
                    present = await self._present()
                except MachineryError as exc:
                    if self._closing:
                        return
                    if not away:
                        away = str(exc)
                        for change in self._unreachable(away):
                            yield change
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, REOPEN[1])
                    continue
                away, pause = "", REOPEN[0]
                for change in present:
                    yield change
                while (heard := await _next(stream, live)) is not None:
                    yield heard
                if self._closing:
                    return
                away = live.why
                log.warning("libvirt.lost", uri=self._uri.shown, reason=away)
                for change in self._unreachable(away):
                    yield change
        finally:
            self._streams.discard(stream)

    async def _present(self) -> list[StateChange]:
        changes = []
        for label in self._configured():
            with contextlib.suppress(MachineNotFound):  # the core says so
                changes.append(StateChange(label, await self.state(label)))
        return changes

    def _unreachable(self, reason: str) -> list[StateChange]:
        state = MachineState.UNREACHABLE
        return [StateChange(label, state, reason) for label in self._configured()]

    def _configured(self) -> list[str]:
        return [machine.label for machine in self.config.machines]

    def _on_event(self, label: str, event: int, detail: int) -> None:
        found = state_after(event, detail)
        if found is None or self._is_settled(label, found[0]):
            return
        if found[0] is MachineState.RUNNING:
            self._settled.discard(label)
        self._tell(StateChange(label, *found))

    def _tell(self, change: StateChange) -> None:
        for stream in self._streams:
            stream.put_nowait(change)

    # -- small things ---------------------------------------------------------------------------

    async def _on(
        self, link: Link, label: str, work: Callable[[libvirt.virDomain], T], seconds: float
    ) -> T:
        """What ``work`` makes of the machine, in a thread of the link."""
        return await link.call(label, _with(label, work), seconds)

    def _is_settled(self, label: str, state: MachineState) -> bool:
        return state is MachineState.ABORTED and label in self._settled


def _with(label: str, work: Callable[[libvirt.virDomain], T]) -> Callable[[libvirt.virConnect], T]:
    return lambda connection: work(connection.lookupByName(label))


def _names(connection: libvirt.virConnect) -> list[str]:
    return sorted(domain.name() for domain in connection.listAllDomains())


@contextlib.contextmanager
def _files_of(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MachineryError(f"{label}: {exc}") from exc


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def _next(stream: asyncio.Queue[StateChange | None], live: Live) -> StateChange | None:
    """The next change; None when the connection is lost or the backend closed."""
    getting = asyncio.ensure_future(stream.get())
    losing = asyncio.ensure_future(live.gone.wait())
    try:
        await asyncio.wait({getting, losing}, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()
        losing.cancel()
