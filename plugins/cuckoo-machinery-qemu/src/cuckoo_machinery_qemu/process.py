"""One QEMU process: started with few rights, tied to our life, ended for sure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cuckoo_api.machinery import BackendUnavailable, MachineState, StateChange
from cuckoo_machinery_qemu.monitor import Monitor
from cuckoo_machinery_qemu.spec import MONITOR

STDERR_LIMIT = 4096
KILL_TIMEOUT = 10.0
HANG_UP_TIMEOUT = 2.0
"""Seconds between the end of the monitor's connection and that of a process that ends well."""


class QemuProcess:
    """A running machine. ``on_change`` hears of every change of state, also of the end."""

    def __init__(self, label: str, on_change: Callable[[StateChange], None]) -> None:
        self.label = label
        self.monitor = Monitor(label, self._event)
        self.state = MachineState.POWEROFF
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._end: asyncio.Task[None] | None = None
        self._shut_down_by_guest = False
        self._panicked = False
        self._told_to_end = False
        self.stderr = ""

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid if self._process else 0

    async def start(
        self, command: Sequence[str], *, cwd: Path, fds: Sequence[int], pidfile: Path
    ) -> None:
        """Start QEMU and greet it. ``command`` has the monitor's socket as MONITOR.

        Raises BackendUnavailable with QEMU's own words when it ends at once.
        """
        ours, theirs = socket.socketpair()
        moved = os.dup(theirs.fileno())
        theirs.close()
        try:
            # the descriptor is named on the command line: put it where that says
            arguments = [f"{word}{moved}" if word == MONITOR else word for word in command]
            self._process = await asyncio.create_subprocess_exec(
                *arguments,
                cwd=cwd,
                pass_fds=[moved, *fds],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"},
            )
        finally:
            os.close(moved)
        self._end = asyncio.create_task(self._follow(), name=f"qemu-{self.label}")
        ours.setblocking(False)
        try:
            await self.monitor.open(ours)
        except BackendUnavailable as exc:
            await self.gone()  # its complaint is complete then
            raise BackendUnavailable(f"{exc}: {' '.join(self.stderr.split())}") from exc
        self.state = MachineState.PAUSED
        await asyncio.to_thread(pidfile.write_text, str(self._process.pid))

    async def kill(self) -> None:
        """End the process now; returns once it is gone. Safe to call twice."""
        self.expect_end()
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        if self._end is not None:
            await asyncio.wait({self._end}, timeout=KILL_TIMEOUT)

    async def hung_up(self) -> None:
        """The monitor's connection has ended: so must the process, by itself or by us."""
        if self._process is None or self._end is None:
            return
        await asyncio.wait({self._end}, timeout=HANG_UP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.wait({self._end}, timeout=KILL_TIMEOUT)

    def expect_end(self) -> None:
        """The end that comes is wanted."""
        self._told_to_end = True

    async def gone(self) -> None:
        """Until the process has ended."""
        if self._end is not None:
            await asyncio.wait({self._end})

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "RESUME":
            self._go(MachineState.RUNNING)
        elif name == "STOP":
            self._go(MachineState.PAUSED)
        elif name == "SHUTDOWN":
            self._shut_down_by_guest = bool(data.get("guest"))
        elif name == "GUEST_PANICKED":
            self._panicked = True

    def _go(self, state: MachineState, reason: str = "") -> None:
        if state is not self.state:
            self.state = state
            self._on_change(StateChange(self.label, state, reason))

    async def _follow(self) -> None:
        """Read what QEMU complains of, wait for its end, and tell how it ended."""
        process = self._process
        if process is None or process.stderr is None:
            return
        while line := await process.stderr.read(1024):
            self.stderr = (self.stderr + line.decode(errors="replace"))[-STDERR_LIMIT:]
        code = await process.wait()
        await self.monitor.close()
        well = self._told_to_end or (self._shut_down_by_guest and not self._panicked and code == 0)
        if well:
            self._go(MachineState.POWEROFF)
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = self.stderr.strip().splitlines()[-1:] or [""]
        self._go(MachineState.ABORTED, f"QEMU ended with {how}. {last[0]}".strip())
