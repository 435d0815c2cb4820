"""A typical analysis, from a machine that is off to its report.

The hypervisor is the fake one, whose machines start at once: what a real one takes to restore a
snapshot, ``start`` measures. All else is real, the worker process and its limits among it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import aiohttp

from cuckoo_api.machinery import MachineConfig
from cuckoo_api.server.app import create_app
from cuckoo_api.server.run import serve
from cuckoo_api.settings import CuckooSection, MachinerySettings, Settings, init_cwd
from cuckoo_api.testing.fake import FakeGuest, FakeHypervisor, GuestRun, fake_plugin

from .figure import Figure
from .reading import write_capture, write_trace

TRACE = 10 << 20
CAPTURE = 20 << 20
FILES = 50
FILE_SIZE = 64 << 10
SECONDS = 3.0
ROUNDS = 5
TOKEN = "secret"


def measure(folder: Path) -> list[Figure]:
    """Seconds from the submission to ``reported``."""
    return [asyncio.run(_measure(folder))]


async def _measure(folder: Path) -> Figure:
    for name, write, size in (("trace", write_trace, TRACE), ("pcap", write_capture, CAPTURE)):
        with (folder / name).open("wb") as file:
            write(file, size)
    trace, capture = (folder / "trace").read_bytes(), (folder / "pcap").read_bytes()
    files = [random.Random(number).randbytes(FILE_SIZE) for number in range(FILES)]
    cwd = folder / "cwd"

    async def sample(run: GuestRun) -> None:
        async with run.log() as log:
            await log("analyzer: INFO: starting the sample")
            await run.upload("logs/trace.strace", trace)
            for number, data in enumerate(files):
                await run.upload(f"files/{number}_x", data, path=f"/tmp/x{number}", pids=[100])
            # as the hypervisor's capture leaves it
            pcap = cwd / "storage" / "analyses" / run.conf["id"] / "dump.pcap"
            await asyncio.to_thread(pcap.write_bytes, capture)
            run.status("complete")

    async with FakeHypervisor() as world:
        world.add("one", guest=FakeGuest(sample))
        plugin = fake_plugin(world)
        init_cwd(cwd, [])
        machine = MachineConfig(
            label="one", name="one", ip="192.168.55.11", platform="linux",
            resultserver_ip="192.168.55.1",
        )  # fmt: skip
        settings = Settings(
            cwd=cwd,
            cuckoo=CuckooSection(machinery=("fake",), api_token=TOKEN, freespace=0),
            machinery={"fake": MachinerySettings(name="fake", options={}, machines=(machine,))},
        )
        ready = asyncio.get_running_loop().create_future()
        app = create_app(settings, plugins=[plugin])
        serving = asyncio.create_task(serve(app, port=0, on_ready=ready.set_result))
        try:
            url = await ready
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with aiohttp.ClientSession(url, headers=headers) as session:
                rounds = [await _once(session, number) for number in range(ROUNDS)]
        finally:
            serving.cancel()
            await asyncio.wait({serving})
    return Figure(
        name="A typical analysis, submitted to reported",
        pairs=[(seconds, SECONDS) for seconds in rounds],
        yardstick="wanted",
        unit="s",
        at_most=1.0,
        note="10 MiB trace, 20 MiB capture, 50 files; on a hypervisor that takes no time",
    )


async def _once(session: aiohttp.ClientSession, number: int) -> float:
    form = aiohttp.FormData()
    form.add_field("file", f"#!/bin/sh\n# {number}\n".encode(), filename="sample.sh")
    async with asyncio.timeout(120), session.get("/events") as events:
        begin = time.perf_counter()
        async with session.post("/tasks/create/file", data=form) as response:
            task_id = (await response.json())["task_id"]
        # told, and not asked again and again: that alone would keep a processor busy
        while await _next_status(events.content, task_id) in ("pending", "running", "completed"):
            pass
        seconds = time.perf_counter() - begin
    async with session.get(f"/tasks/view/{task_id}") as response:
        task = (await response.json())["task"]
    assert task["status"] == "reported", task
    async with session.get(f"/tasks/report/{task_id}") as response:
        report = await response.json()
    assert len(report["dropped"]) == FILES, report["debug"]["errors"]
    assert report["behavior"]["processes"]
    assert report["network"]["http"]
    return seconds


async def _next_status(stream: aiohttp.StreamReader, task_id: int) -> str:
    """The state that the task comes to next, by the server's events."""
    kind = b""
    async for line in stream:
        name, _, value = line.partition(b": ")
        if name == b"event":
            kind = value.strip()
        elif name == b"data" and kind == b"task" and (told := json.loads(value))["id"] == task_id:
            return str(told["status"])
    raise EOFError("the server's events ended")
