"""From a free machine to the sample running in a real guest, beside what QEMU alone takes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.full.serverkit import Namespace, Site, new_cwd, place_guest

from .figure import Figure

ROUNDS = 7
SAMPLE = b"#!/bin/sh\nexit 0\n"


def measure(folder: Path) -> list[Figure]:
    """The time to the sample's first traced call."""
    prepared = _prepare(folder / "prepared")
    return [asyncio.run(_measure(folder, prepared))]


def _prepare(cwd: Path) -> Path:
    """A working directory with a machine and its live snapshot, made as a user makes it."""
    cuckoo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd)]
    place_guest(cwd)
    with Namespace() as namespace:
        subprocess.run([*cuckoo, "init"], check=True, stdout=subprocess.DEVNULL)
        build = namespace.inside(*cuckoo, "guest", "build")
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return cwd


async def _measure(folder: Path, prepared: Path) -> Figure:
    pairs: list[tuple[float, float]] = []
    # each has the guests' network for itself
    with Namespace() as first, Namespace() as second:
        site = Site(new_cwd(folder / "site", prepared), first)
        cwd = new_cwd(folder / "alone", prepared)
        async with _alone(
            second.inside(sys.executable, "-m", "tests.bench.alone", str(cwd))
        ) as qemu:
            try:
                await site.start()
                for number in range(ROUNDS + 1):
                    alone = await _alone_once(qemu)
                    whole = await _whole_once(site)
                    if number:  # the first one fills the caches
                        pairs.append((whole, alone))
            finally:
                await site.stop()
    return Figure(
        name="File submitted to sample running in the guest",
        pairs=pairs,
        yardstick="QEMU alone, revert to agent",
        unit="s",
        at_most=1.5,
    )


async def _whole_once(site: Site) -> float:
    """Submit, and wait for the first line of the sample's trace; the machine is free before."""
    begin = time.perf_counter()
    task_id = await site.submit(SAMPLE, "sample.sh", timeout=30)
    trace = site.folder(task_id) / "logs" / "trace.strace"
    async with asyncio.timeout(60):
        while not (trace.exists() and trace.stat().st_size):
            await asyncio.sleep(0.002)
    seconds = time.perf_counter() - begin
    task = await site.until(task_id, "reported", "failed_analysis", "failed_processing")
    assert task["status"] == "reported", task
    return seconds


@asynccontextmanager
async def _alone(command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def _alone_once(process: asyncio.subprocess.Process) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"start\n")
    async with asyncio.timeout(60):
        return float(await process.stdout.readline())
