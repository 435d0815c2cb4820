"""A guest in 512 bytes: it keeps a line on its disk, and talks on its serial port."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

SECTOR = 512

_PROGRAM = bytes.fromhex(
    "31c0 8ed8 8ec0 89d5 fb fc"  # ds = es = 0; bp: the drive; interrupts on
    # again: what comes is stored from 7e00 on; a line's end has it written, '?' has it told
    "bf007e"
    "e83100 3c3f 740d aa 3c0a 75f4 b80103 e81500 ebe9"
    # tell: the sector read anew, up to the line's end
    "b80102 e80d00 be007e ac e82200 3c0a 75f8 ebd6"
    "bb007e b90200 89ea 30f6 cd13 c3"  # disk: the second sector, from or to 7e00
    "bafd03 ec a801 7503 f4 ebf8 b2f8 ec c3"  # a byte in; the processor sleeps until there is one
    "88c4 bafd03 ec a820 74fb b2f8 88e0 ee c3"  # a byte out
)


def write_disk(path: Path) -> None:
    """A raw disk of a MiB that boots the program, and has an empty line."""
    boot = _PROGRAM.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    path.write_bytes((boot + b"\n").ljust(1 << 20, b"\0"))


async def read_line(socket: Path) -> str:
    """The line on the guest's disk. It is asked until it has booted and answers."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                if answer := await _say(socket, b"?"):
                    return answer.decode().removesuffix("\n")
        await asyncio.sleep(0.1)  # a machine that starts has no socket, or hangs up at once


async def write_line(socket: Path, text: str) -> None:
    """Have the guest write a line to its disk."""
    while await read_line(socket) != text:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await _say(socket, text.encode() + b"\n?")


async def _say(socket: Path, words: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(words)
        return await reader.readline()
    finally:
        writer.close()
