"""QMP over a socket pair: commands, jobs and events of one QEMU process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError

from cuckoo_api.machinery import BackendUnavailable, MachineryError, OperationTimedOut

COMMAND_TIMEOUT = 10.0
"""Seconds for a command that does no lengthy work."""

# the library logs each broken connection with a traceback; ours end by design
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class CommandFailed(MachineryError):
    """QEMU refused a command; the text is its own."""


class Monitor:
    """The control connection of one QEMU process."""

    def __init__(self, label: str, on_event: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._label = label
        self._on_event = on_event
        self._client = QMPClient(label)
        self._numbers = itertools.count(1)
        self._jobs: dict[str, asyncio.Event] = {}
        self._dumped = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._connected = False
        self.closed = asyncio.Event()

    async def open(self, ours: socket.socket) -> None:
        """Greet QEMU. Raises BackendUnavailable when it ends before it answers."""
        try:
            await asyncio.wait_for(self._client.connect(ours), COMMAND_TIMEOUT)
        except TimeoutError as exc:  # first: it is an OSError too
            raise OperationTimedOut(f"{self._label}: QEMU did not greet") from exc
        except (QMPError, EOFError, OSError) as exc:
            raise BackendUnavailable(f"{self._label}: QEMU ended before it was ready") from exc
        self._connected = True
        self._pump = asyncio.create_task(self._read_events(), name=f"qmp-{self._label}")

    async def close(self) -> None:
        """Drop the connection. Raises nothing."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait({self._pump})
        self.closed.set()
        if not self._connected:
            return
        self._connected = False
        # a process that was killed leaves a broken connection behind, in one of many forms
        with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
            await asyncio.wait_for(self._client.disconnect(), 2)

    async def run(self, command: str, timeout: float = COMMAND_TIMEOUT, **arguments: Any) -> Any:
        """Run one command; underscores in argument names stand for hyphens."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return await asyncio.wait_for(self._client.execute(command, named), timeout)
        except ExecuteError as exc:
            raise CommandFailed(f"{self._label}: {command}: {exc.error_class}: {exc}") from exc
        except TimeoutError as exc:
            raise OperationTimedOut(
                f"{self._label}: {command} took more than {timeout:g} s"
            ) from exc
        except (QMPError, EOFError, OSError) as exc:
            raise BackendUnavailable(f"{self._label}: QEMU went away during {command}") from exc

    async def job(self, command: str, timeout: float, **arguments: Any) -> None:
        """Run a command that makes a background job, until the job has concluded well."""
        name = f"job{next(self._numbers)}"
        concluded = self._jobs[name] = asyncio.Event()
        try:
            await self.run(command, job_id=name, **arguments)
            await self._wait(concluded, timeout, command)
            for job in await self.run("query-jobs"):
                if job["id"] == name and "error" in job:
                    raise CommandFailed(f"{self._label}: {command}: {job['error']}")
            await self.run("job-dismiss", id=name)
        finally:
            del self._jobs[name]

    async def dump(self, path: str, timeout: float) -> None:
        """Write the guest's memory to a path as QEMU sees it."""
        self._dumped.clear()
        await self.run("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)
        await self._wait(self._dumped, timeout, "dump-guest-memory")
        result = await self.run("query-dump")
        if result["status"] != "completed":
            raise CommandFailed(f"{self._label}: dump-guest-memory {result['status']}")

    async def _wait(self, event: asyncio.Event, timeout: float, command: str) -> None:
        """Until the event, unless the connection goes or the time is over first."""
        waits = {
            asyncio.create_task(event.wait()),
            asyncio.create_task(self.closed.wait()),
        }
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if event.is_set():
            return
        if self.closed.is_set():
            raise BackendUnavailable(f"{self._label}: QEMU went away during {command}")
        raise OperationTimedOut(f"{self._label}: {command} took more than {timeout:g} s")

    async def _read_events(self) -> None:
        try:
            async for event in self._client.events:
                self._take(event)
        finally:
            self.closed.set()

    def _take(self, event: Message) -> None:
        name = str(event["event"])
        data: Mapping[str, Any] = event.get("data") or {}  # type: ignore[assignment]  # QMP says: an object
        if name == "JOB_STATUS_CHANGE" and data.get("status") == "concluded":
            if job := self._jobs.get(str(data.get("id"))):
                job.set()
        elif name == "DUMP_COMPLETED":
            self._dumped.set()
        self._on_event(name, data)
