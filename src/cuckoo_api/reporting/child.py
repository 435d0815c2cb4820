"""A worker process from its parent's side: what it lives in, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    # else its binding starts programs to find it, which a worker may not
    "LIBARCHIVE": "libarchive.so.13",
}
MAX_STDERR = 2_000
MAX_ANSWER = 1 << 20
BLOCK = 64 << 10


class Worker:
    """A process that is asked line by line, from the first question until it is closed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._running: tuple[asyncio.subprocess.Process, asyncio.Task[str]] | None = None
        """And what listens to its complaints."""

    async def ask(self, line: bytes) -> asyncio.StreamReader:
        """Ask, and start it before if need be; where it answers."""
        process, _ = self._running = self._running or await self._start()
        stdin = cast("asyncio.StreamWriter", process.stdin)
        with suppress(ConnectionError):  # it died at once; its end says why
            stdin.write(line + b"\n")
            await stdin.drain()
        return cast("asyncio.StreamReader", process.stdout)

    async def ending(self) -> str:
        """Wait until it is gone; how that came, in words."""
        if self._running is None:
            return "the worker was not started"
        process, complaints = self._running
        return ending(await process.wait(), await complaints)

    async def close(self) -> None:
        """Kill what is left of it. The next question starts another one."""
        if self._running is not None:
            (process, complaints), self._running = self._running, None
            complaints.cancel()
            await end(process)

    async def _start(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[str]]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_ANSWER,
            start_new_session=True,
            cwd="/",
            env=ENVIRONMENT,
        )
        stderr = cast("asyncio.StreamReader", process.stderr)
        return process, asyncio.create_task(tail(stderr))


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the worker and reap it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        while await process.stdout.read(BLOCK):  # a full pipe would keep wait() waiting
            pass
    await process.wait()


async def tail(stream: asyncio.StreamReader) -> str:
    """The last of what the worker complained about."""
    text = b""
    while data := await stream.read(4096):
        text = (text + data)[-MAX_STDERR:]
    return text.decode("utf-8", "backslashreplace").strip()


def ending(code: int, complaints: str) -> str:
    """How the worker came to its end, in words."""
    last = complaints.rpartition("\n")[2]
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the worker was ended by {name}" + (f": {last}" if last else "")
    return f"the worker ended with code {code}" + (f": {last}" if last else "")
