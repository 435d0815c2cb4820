"""What a guest sends and receives, as ``dump.pcap``."""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog

from cuckoo_api.machinery import Capability, MachineryError

log = structlog.get_logger()

START_TIMEOUT = 10.0
STOP_TIMEOUT = 5.0
MAX_SIZE = 4 << 30
"""Bytes of a capture: a guest that floods its network must not fill the host's disk."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Captured(Protocol):
    """What of a machine's lease a capture needs."""

    @property
    def capabilities(self) -> Capability:
        """CAPTURE among them where the hypervisor does it."""

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
    if machine.capabilities & Capability.CAPTURE:
        how = _by_hypervisor(machine, path)
    else:
        how = _by_tcpdump(path, interface, ip)
    async with how as fault:
        yield [f"No capture of the network: {fault}"] if fault else []


@asynccontextmanager
async def _by_hypervisor(machine: Captured, path: Path) -> AsyncIterator[str]:
    fault = ""
    try:
        await machine.start_capture(path)
    except MachineryError as exc:
        fault = str(exc)
    try:
        yield fault
    finally:
        with contextlib.suppress(MachineryError):  # it went away: the file is finished
            await machine.stop_capture()


@asynccontextmanager
async def _by_tcpdump(path: Path, interface: str, ip: str) -> AsyncIterator[str]:
    if not interface:
        yield "the machine has no interface configured"
        return
    process: Process | None = None
    fault = ""
    try:
        process = await _start(path, interface, ip)
        fault = await _listening(process)
    except OSError as exc:
        fault = f"{exc.filename or 'tcpdump'}: {exc.strerror or exc}"
    except asyncio.CancelledError:
        await _stop(process)
        raise
    if fault:
        await _stop(process)
        if process is not None:
            path.unlink(missing_ok=True)  # it is empty
        yield fault
        return
    try:
        yield ""
    finally:
        if process is not None and process.returncode is not None:
            log.warning("capture.ended_early", path=str(path), code=process.returncode)
        await _stop(process)


async def _start(path: Path, interface: str, ip: str) -> Process:
    # the file is ours and tcpdump gets it open: it needs no rights in the analysis folder
    rights = ["-Z", "nobody"] if os.geteuid() == 0 else []
    handle = os.open(path, _NEW, 0o640)
    try:
        return await asyncio.create_subprocess_exec(
            *("prlimit", f"--fsize={MAX_SIZE}", "--core=0"),
            *("tcpdump", "-n", "-p", "-U", "--immediate-mode", *rights),
            *("-i", interface, "-w", "-", "host", ip),
            stdin=DEVNULL,
            stdout=handle,
            stderr=PIPE,
        )
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


async def _listening(process: Process) -> str:
    """Wait until tcpdump listens; what is wrong, otherwise."""
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT):
            while process.stderr is not None and (line := await process.stderr.readline()):
                said += line
                if b"listening on" in line:
                    return ""
    return " ".join(said.decode(errors="replace").split()) or "tcpdump did not start"


async def _stop(process: Process | None) -> None:
    """End it and reap it; SIGTERM lets it finish its file."""
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
