# ruff: noqa: S101 - these are parts of tests; an assert is how a test speaks
"""What a conformance test is made of: the rig, and the steps that its tests share."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from cuckoo_api.machinery import (
    BackendUnavailable,
    Capability,
    MachineryBackend,
    MachineState,
    StateChange,
)

T = TypeVar("T")

PCAP_MAGIC = {0xA1B2C3D4, 0xA1B23C4D}


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A hypervisor to test on: how to make backends for it, and what else can be done to it."""

    make: Callable[[], MachineryBackend]
    """A new backend for the same hypervisor, not opened."""
    labels: tuple[str, ...]
    """Machines that exist and are configured; two, to test two at once."""
    snapshot: str = ""
    """A snapshot that each of them has; empty: the current one."""
    timeout: float = 60
    """Seconds for a revert and start, and for events and the hypervisor to come back."""
    max_lag: float = 0.25
    """Seconds for which the event loop may stand still."""
    has_named_snapshots: bool = True
    """Whether a wrong snapshot name can be told from a right one."""
    cancel_after: tuple[float, ...] = (0, 0.01, 0.2)
    """At which moments of a start, in seconds, it is cancelled."""
    write_inside: Callable[[str, str], Awaitable[None]] | None = None
    """``(label, text)``: leave a mark in the running guest, on disk or in memory."""
    read_inside: Callable[[str], Awaitable[str]] | None = None
    """``(label)``: the mark in the running guest, empty where there is none."""
    kill_machine: Callable[[str], Awaitable[None]] | None = None
    """``(label)``: end the running machine behind the backend's back."""
    hypervisor_down: Callable[[], Awaitable[None]] | None = None
    """Make the hypervisor stop answering."""
    hypervisor_up: Callable[[], Awaitable[None]] | None = None
    """Make it answer again."""
    without: Mapping[str, str] = field(default_factory=dict)
    """For each thing above that this rig cannot do (``second_machine`` too): why."""


async def within(seconds: float, call: Awaitable[T]) -> T:
    """The call's result; a failure that names the call when it takes longer."""
    name = getattr(call, "__qualname__", repr(call))
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        pytest.fail(f"{name} took longer than {seconds:g} s")
    return task.result()


async def start(backend: MachineryBackend, rig: Rig, label: str = "") -> None:
    """Revert and start a machine of the rig, the first unless told."""
    await within(rig.timeout, backend.restore_and_start(label or rig.labels[0], rig.snapshot))


def has(backend: MachineryBackend, capability: Capability) -> bool:
    """Whether the backend can; where not, ``test_what_it_cannot_do_it_refuses`` looks at it."""
    return capability in backend.capabilities


def explained(rig: Rig, *needs: str) -> None:
    """Fail unless the rig says why it has not what a test needs."""
    assert any(rig.without.get(need) for need in needs), (
        f"this rig lacks {' and '.join(needs)}; give it, or say in Rig.without why it cannot be"
    )


def is_pcap(path: Path) -> bool:
    """Whether a file begins as a capture in pcap format does, in either byte order."""
    magic = path.read_bytes()[:4]
    return {int.from_bytes(magic, "little"), int.from_bytes(magic, "big")} & PCAP_MAGIC != set()


async def eventually(rig: Rig, ask: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> None:
    """Ask until the answer is good; BackendUnavailable is no answer. Within the rig's timeout."""
    last: object = None
    try:
        async with asyncio.timeout(rig.timeout):
            while True:
                try:
                    answer = await ask()
                    if good(answer):
                        return
                    last = answer
                except BackendUnavailable as exc:
                    last = exc
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"after {rig.timeout:g} s still {last!r}")


@contextlib.asynccontextmanager
async def watching(backend: MachineryBackend) -> AsyncIterator[asyncio.Queue[StateChange]]:
    """The backend's events in a queue, until the block ends."""
    events: asyncio.Queue[StateChange] = asyncio.Queue()
    stream = backend.watch()

    async def follow() -> None:
        async for event in stream:
            events.put_nowait(event)

    follower = asyncio.create_task(follow())
    try:
        yield events
    finally:
        follower.cancel()
        await asyncio.wait({follower})
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
    if not follower.cancelled():
        follower.result()


async def expect(
    events: asyncio.Queue[StateChange], rig: Rig, label: str, *states: MachineState
) -> None:
    """Wait for the machine to be reported in one of the states."""
    seen: list[StateChange] = []
    try:
        async with asyncio.timeout(rig.timeout):
            while True:
                seen.append(await events.get())
                if seen[-1].label == label and seen[-1].state in states:
                    return
    except TimeoutError:
        pytest.fail(f"no event {label} {' or '.join(states)}; there came: {seen}")


class _Heartbeat(threading.Thread):
    """Does nothing, often. When it too is late, the machine was busy, and not the event loop."""

    def __init__(self, pause: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._pause = pause
        self._over = threading.Event()
        self._due = time.monotonic()
        self._stalls: list[tuple[float, float]] = []

    def run(self) -> None:
        self._due = time.monotonic() + self._pause
        while not self._over.wait(self._pause):
            now = time.monotonic()
            if now - self._due > self._pause:
                self._stalls.append((self._due, now))
            self._due = now + self._pause

    def stop(self) -> None:
        self._over.set()
        self.join()

    def stalled(self, start: float, end: float) -> float:
        """Seconds between two moments in which this thread was not let run."""
        stalls = [*self._stalls, (self._due, end)]
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in stalls)


def _starved() -> float:
    """Seconds that this thread could have run, and no processor was free; 0 where not counted."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


@contextlib.asynccontextmanager
async def event_loop_watched(max_lag: float) -> AsyncIterator[None]:
    """Fail when the event loop stood still for longer than ``max_lag`` seconds.

    What a busy machine kept from it does not count; what this process did meanwhile does.
    """
    pause = 0.005
    worst = 0.0
    due, spent, starved = time.monotonic() + pause, time.process_time(), _starved()
    heart = _Heartbeat(pause)
    heart.start()

    def look() -> None:
        nonlocal worst
        now = time.monotonic()
        lag = now - due
        busy, waited = time.process_time() - spent, _starved() - starved
        worst = max(worst, lag - max(heart.stalled(due, now), waited), min(lag - waited, busy))

    async def tick() -> None:
        nonlocal due, spent, starved
        while True:
            due, spent, starved = time.monotonic() + pause, time.process_time(), _starved()
            await asyncio.sleep(pause)
            look()

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        yield
        look()
    finally:
        ticking.cancel()
        heart.stop()
    assert worst <= max_lag, f"the event loop stood still for {worst:.3f} s (limit {max_lag} s)"


async def use(backend: MachineryBackend, method: str, arguments: tuple[object, ...]) -> None:
    """Call a method by name; fail when it works although its capability is not declared."""
    answer = getattr(backend, method)(*arguments)
    if inspect.isawaitable(answer):
        await within(10, answer)
    pytest.fail(f"{method}() works, its capability is not declared")
