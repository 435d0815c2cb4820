"""One backend in the hands of the core: a deadline on every call, and machines truly off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog

from cuckoo_api.fleet.deadlines import Deadlines, bounded, bug
from cuckoo_api.machinery import (
    BackendConfig,
    BackendUnavailable,
    Capability,
    GuestAddress,
    MachineConfig,
    MachineFacts,
    MachineNotFound,
    MachineryBackend,
    MachineryError,
    MachineryPlugin,
    MachineState,
    Secret,
    StateChange,
    WrongState,
)

log = structlog.get_logger()

OFF = frozenset({MachineState.POWEROFF, MachineState.SAVED, MachineState.ABORTED})
"""States in which nothing of the guest runs."""

AGENT_PORT = 8000
NO_LIMIT = 1 << 30
_POWER_OFF_ATTEMPTS = 2
_SHORTEST_SECRET = 4
_LOOKS = 4
"""Inspections under way at once: a server's start has one for each machine."""


class Hypervisor:
    """A backend of one plugin. Every method raises MachineryError subclasses only, in bounded time.

    The backend object is made anew by each :meth:`open`, for a backend is opened once.
    """

    def __init__(
        self,
        plugin: MachineryPlugin,
        config: BackendConfig,
        deadlines: Deadlines,
        *,
        max_starts: int = 0,
    ) -> None:
        """``max_starts`` at once are for whoever starts machines to keep to; 0: no limit."""
        self.name = config.name
        self.config = config
        self.deadlines = deadlines
        self._max_starts = max_starts
        self.starts = asyncio.Semaphore(max_starts or NO_LIMIT)
        self._looks = asyncio.Semaphore(_LOOKS)
        self._secrets = _secrets(config)
        self._plugin = plugin
        self._backend: MachineryBackend | None = None

    def limit_starts(self, most: int) -> None:
        """Another limit; who waits or starts now still keeps to the one before."""
        if most != self._max_starts:
            self._max_starts = most
            self.starts = asyncio.Semaphore(most or NO_LIMIT)

    @property
    def is_open(self) -> bool:
        """Whether there is a backend to call."""
        return self._backend is not None

    @property
    def capabilities(self) -> Capability:
        """What the backend can do; nothing before it is open."""
        return self._backend.capabilities if self._backend is not None else Capability.NONE

    @property
    def backend(self) -> MachineryBackend:
        """The open backend; BackendUnavailable where there is none."""
        if self._backend is None:
            raise BackendUnavailable(f"{self.name}: not connected")
        return self._backend

    async def open(self) -> None:
        """Make a backend and open it. After a failure nothing of it is left."""
        backend = self._make()
        try:
            await self._call(backend, "open", seconds=self.deadlines.open)
        except BaseException:
            await self._quietly(backend, "close")
            raise
        self._backend = backend

    async def close(self) -> None:
        """Close the backend if there is one; a failure is logged."""
        backend, self._backend = self._backend, None
        if backend is not None:
            await self._quietly(backend, "close")

    async def labels(self) -> list[str]:
        """Every machine that the hypervisor has."""
        return [*await self._call(self.backend, "labels", seconds=self.deadlines.labels)]

    async def state(self, label: str) -> MachineState:
        """What the machine does now."""
        answer = await self._call(self.backend, "state", label, seconds=self.deadlines.state)
        try:
            return MachineState(answer)
        except ValueError as exc:
            raise MachineryError(f"{self.name}: state of {label} is {answer!r}") from exc

    async def inspect(self, label: str) -> MachineFacts:
        """What the hypervisor knows of the machine; NotSupported where it cannot tell (INSPECT)."""
        async with self._looks:  # else the last of many would wait in the plugin, on its time
            facts = await self._call(self.backend, "inspect", label, seconds=self.deadlines.inspect)
        if not isinstance(facts, MachineFacts):
            raise MachineryError(f"{self.name}: inspect of {label} is {facts!r}")
        return facts

    async def restore_and_start(self, label: str, snapshot: str) -> None:
        """Revert and start; see the contract. What to do after a failure is the caller's."""
        await self.order("restore_and_start", label, snapshot, seconds=self.deadlines.start)

    async def order(self, method: str, label: str, *arguments: object, seconds: float) -> None:
        """Any method that answers nothing, by name."""
        await self._call(self.backend, method, label, *arguments, seconds=seconds)

    async def ensure_off(self, label: str, *, even_if_off: bool = False) -> None:
        """Return when the hypervisor says that the machine is off; raise when it cannot be.

        ``even_if_off`` orders the power off whatever the state is: an order to start that was
        given up may be under way in the hypervisor.
        """
        # not for ABORTED: there may be something left to clear away
        if not even_if_off and await self.state(label) is MachineState.POWEROFF:
            return
        for attempt in range(_POWER_OFF_ATTEMPTS):
            try:
                await self.order("power_off", label, seconds=self.deadlines.power_off)
                state = await self.state(label)
                if state in OFF:
                    return
                raise WrongState(f"{label} is still {state} after power_off")
            except (MachineNotFound, BackendUnavailable):
                raise
            except MachineryError as exc:
                log.warning("machine.power_off_failed", label=label, reason=str(exc))
                if attempt + 1 == _POWER_OFF_ATTEMPTS:
                    raise

    def address(self, machine: MachineConfig) -> GuestAddress:
        """Where the guest's agent is and where the guest finds the host."""
        if Capability.ADDRESS in self.capabilities:
            try:
                return self.backend.address(machine.label)
            except MachineryError:
                raise
            except Exception as exc:
                raise bug(f"{self.name}: address of {machine.label}", exc, self._hide) from exc
        host = f"[{machine.ip}]" if ":" in machine.ip else machine.ip
        return GuestAddress(
            agent=f"{host}:{AGENT_PORT}",
            resultserver_ip=machine.resultserver_ip,
            resultserver_port=machine.resultserver_port,
        )

    @asynccontextmanager
    async def events(self) -> AsyncGenerator[AsyncIterator[StateChange], None]:
        """The backend's stream of changes (WATCH), closed when the block ends."""
        streams: list[AsyncIterator[StateChange]] = []
        events = self._events(streams)
        try:
            yield events
        finally:
            await events.aclose()
            for stream in streams:
                if hasattr(stream, "aclose"):
                    await self._quietly(stream, "aclose")

    async def _events(
        self, streams: list[AsyncIterator[StateChange]]
    ) -> AsyncGenerator[StateChange, None]:
        with self._discreet():
            try:
                streams.append(self.backend.watch())
                async for change in streams[0]:
                    yield change
            except MachineryError:
                raise
            except Exception as exc:
                raise bug(f"{self.name}: watch", exc, self._hide) from exc

    def _make(self) -> MachineryBackend:
        with self._discreet():
            try:
                return self._plugin.backend(self.config)
            except MachineryError:
                raise
            except Exception as exc:
                raise bug(f"{self.name}: making the backend", exc, self._hide) from exc

    async def _quietly(self, target: object, method: str) -> None:
        try:
            await self._call(target, method, seconds=self.deadlines.close)
        except MachineryError as exc:
            log.warning("machinery.close_failed", machinery=self.name, reason=str(exc))

    async def _call(self, target: object, method: str, *arguments: object, seconds: float) -> Any:
        async def call() -> Any:  # what the plugin raises before its first await is caught too
            return await getattr(target, method)(*arguments)

        about = f" of {arguments[0]}" if arguments else ""
        what = f"{self.name}: {method}{about}"
        with self._discreet():
            return await bounded(
                call(), seconds, what, cancel=self.deadlines.cancel, hide=self._hide
            )

    @contextmanager
    def _discreet(self) -> Iterator[None]:
        """Let no error out that holds a password, as a binding's own words may."""
        try:
            yield
        except MachineryError as exc:
            text = self._hide(str(exc))
            if text == str(exc):
                raise
            raise type(exc)(text) from None  # the cause says it too

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _secrets(config: BackendConfig) -> list[str]:
    """The passwords that a backend was told, but for those too short to be told from a word."""
    options = [config.options, *(machine.options for machine in config.machines)]
    values = [value for each in options for value in each.values()]
    return [str(v) for v in values if isinstance(v, Secret) and len(v) >= _SHORTEST_SECRET]
