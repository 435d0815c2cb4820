"""What a guest sends and receives, as ``dump.pcap``."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from cuckoo_api.machinery import Capability, MachineryError

START_TIMEOUT = 10.0


class Captured(Protocol):
    """What of a machine's lease a capture needs."""

    @property
    def capabilities(self) -> Capability: ...
    async def start_capture(self, path: Path) -> None:
        """Begin to write ``path``."""

    async def stop_capture(self) -> None:
        """Finish it."""


@asynccontextmanager
async def capture(
    machine: Captured, path: Path, interface: str, ip: str
) -> AsyncIterator[list[str]]:
    """Capture while entered: by the hypervisor where it can, else by tcpdump on the interface.

    Yields the sentences for the task's errors: an analysis goes on without its capture.
    """
    errors: list[str] = []
    if machine.capabilities & Capability.CAPTURE:
        try:
            await machine.start_capture(path)
        except MachineryError as exc:
            errors.append(f"No capture of the network: {exc}")
        try:
            yield errors
        finally:
            with contextlib.suppress(MachineryError):  # it went away: the file is finished
                await machine.stop_capture()
        return
    process = await _tcpdump(path, interface, ip, errors)
    try:
        yield errors
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _tcpdump(
    path: Path, interface: str, ip: str, errors: list[str]
) -> asyncio.subprocess.Process | None:
    """Start tcpdump; once this returns it listens."""
    if not interface:
        errors.append("No capture of the network: the machine has no interface configured")
        return None
    # as root it would write as a user of its own, who may not enter the analysis folder
    rights = ["-Z", "root"] if os.geteuid() == 0 else []
    try:
        process = await asyncio.create_subprocess_exec(
            "tcpdump", "-n", "-p", "-U", "--immediate-mode", *rights,
            "-i", interface, "-w", str(path), "host", ip,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as exc:
        errors.append(f"No capture of the network: tcpdump: {exc.strerror}")
        return None
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT):
            while process.stderr and (line := await process.stderr.readline()):
                said += line
                if b"listening on" in line:
                    return process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    text = " ".join(said.decode(errors="replace").split())
    errors.append(f"No capture of the network: {text or 'tcpdump did not start'}")
    return None
