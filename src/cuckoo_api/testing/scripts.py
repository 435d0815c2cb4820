"""What fake guests do with a sample: one well-behaved script and the ways it goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuckoo_api.testing.guest import GuestRun

TRACE = b"""\
312 1700000000.000100 execve("/tmp/sample", ["/tmp/sample"], 0x7ffd0a /* 3 vars */) = 0
312 1700000000.001200 openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3
312 1700000000.001900 read(3, "127.0.0.1 localhost\\n", 4096) = 20
312 1700000000.002300 close(3) = 0
312 1700000000.003000 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 313
313 1700000000.004000 execve("/bin/sh", ["sh", "-c", "id"], 0x55d0 /* 3 vars */) = 0
313 1700000000.005000 socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) = 3
313 1700000000.005500 connect(3, {sa_family=AF_INET, sin_port=htons(80), \
sin_addr=inet_addr("203.0.113.7")}, 16) = -1 ENETUNREACH (Network is unreachable)
313 1700000000.006000 exit_group(0) = ?
313 1700000000.006100 +++ exited with 0 +++
312 1700000000.007000 openat(AT_FDCWD, "/tmp/dropped.txt", O_WRONLY|O_CREAT|O_TRUNC, 0644) = 3
312 1700000000.007400 write(3, "dropped by the sample\\n", 22) = 22
312 1700000000.007800 exit_group(0) = ?
312 1700000000.007900 +++ exited with 0 +++
"""
"""A small run: a child, a refused connection, a dropped file."""

DROPPED = b"dropped by the sample\n"


async def normal(run: GuestRun) -> None:
    """Log, send a trace and a dropped file, complete."""
    async with run.log() as log:
        await log("analyzer: INFO: starting the sample")
        run.disk["/tmp/dropped.txt"] = DROPPED  # noqa: S108 - a name in the guest
        await run.upload("logs/trace.strace", TRACE)
        name = f"{hashlib.sha256(DROPPED).hexdigest()[:16]}_dropped.txt"
        await run.upload(f"files/{name}", DROPPED, path="/tmp/dropped.txt", pids=[312])  # noqa: S108 - the same
        await log("analyzer: INFO: the sample ended")
        run.status("complete")


async def fails(run: GuestRun) -> None:
    """The analyzer gives up and says why."""
    async with run.log() as log:
        await log("analyzer: ERROR: no such package")
    run.status("failed", "no such package: nonesuch")


async def dies(run: GuestRun) -> None:
    """The machine dies in the middle, after a first file came out."""
    async with run.log() as log:
        await log("analyzer: INFO: starting the sample")
        await run.upload("logs/trace.strace", TRACE[: len(TRACE) // 2])
        await run.cut_power()


async def kills_agent(run: GuestRun) -> None:
    """The sample kills the agent; the machine runs on."""
    async with run.log() as log:
        await log("analyzer: INFO: starting the sample")
        await run.upload("logs/trace.strace", TRACE)
    run.kill_agent()


async def hangs(run: GuestRun) -> None:
    """The sample never ends: the server's own timeout has to."""
    async with run.log() as log:
        await log("analyzer: INFO: starting the sample")
        await asyncio.Event().wait()


async def floods(run: GuestRun, *, size: int = 8 << 20, connections: int = 64) -> None:
    """More bytes, files and connections than any limit in a test; then complete."""
    block = b"\0" * (64 << 10)
    try:
        async with run.connect(b"FILE\nfiles/flood\n") as writer:
            for _ in range(size // len(block)):
                writer.write(block)
                await writer.drain()
    except OSError:
        pass  # cut off: what a limit is for
    await asyncio.gather(*(_one_file(run, n) for n in range(connections)))
    run.status("complete")


async def _one_file(run: GuestRun, number: int) -> None:
    try:
        await run.upload(f"files/{number}", b"x")
    except OSError:
        pass  # refused: what a limit is for


GARBAGE = (
    b"\x00\xff" * 4096,
    b"A" * (1 << 20),
    b"NONESUCH 9\n",
    b"FILE\n../../../etc/passwd\nroot::0:0\n",
    b"FILE 2\nfiles/../../x\n/tmp/x\n1 2\nx",
    b"FILE 2\nfiles/a\x00b\n/tmp/x\n1 2\nx",
    b"FILE 2\nfiles/ok\n/tmp/x\nnot numbers\nx",
    b"FILE\n/absolute\nx",
    b"FILE\nlogs/evil.sh\nx",
    b"BSON -1\nx",
    b"BSON\n",
    b"LOG\n\xff\xfe\x1b[31m not text\n",
    b"LOG\nagain\n",
    b"\n",
    b"",
)
"""What no analyzer sends."""


async def garbage(run: GuestRun) -> None:
    """Everything the result server must refuse; then complete, with a status that is no text."""
    for item in GARBAGE:
        try:
            async with run.connect(item):
                pass
        except OSError:
            pass  # refused: what ought to happen
    run.status("complete", "\x00\x1b]0;not a description\x07" * 100)
