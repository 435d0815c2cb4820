"""A worker process from its parent's side: what it lives in, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    # else its binding starts programs to find it, which a worker may not
    "LIBARCHIVE": "libarchive.so.13",
}
MAX_STDERR = 2_000
BLOCK = 64 << 10


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
