"""A result server of a few lines, and the guest's agent as a process of this host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cuckoo_api.guest.analyzer import PAYLOAD
from cuckoo_api.model.task import Task


@dataclass
class Received:
    """One file that arrived: its destination, path in the guest, pids and content."""

    destination: str
    path: str
    pids: list[str]
    content: bytearray = field(default_factory=bytearray)


class ResultListener:
    """Takes LOG and FILE 2 connections and keeps what they send."""

    def __init__(self) -> None:
        self.log = bytearray()
        self.log_closed = asyncio.Event()
        self.files: list[Received] = []
        self.port = 0

    def file(self, ending: str) -> Received:
        """The one file whose destination ends so."""
        [found] = [file for file in self.files if file.destination.endswith(ending)]
        return found

    def by_path(self, path: str) -> Received:
        """The one file with this path in the guest."""
        [found] = [file for file in self.files if file.path == path]
        return found

    @property
    def trace(self) -> str:
        return self.file("logs/trace.strace").content.decode(errors="replace")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await reader.readline()
        if command == b"LOG\n":
            target = self.log
        else:
            assert command == b"FILE 2\n"
            lines = [(await reader.readline()).decode().rstrip("\n") for _ in range(3)]
            self.files.append(Received(lines[0], lines[1], lines[2].split()))
            target = self.files[-1].content
        while data := await reader.read(65536):
            target += data
        writer.close()
        if target is self.log:
            self.log_closed.set()


@pytest.fixture
async def results() -> AsyncIterator[ResultListener]:
    listener = ResultListener()
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


@contextlib.asynccontextmanager
async def running_agent(temporary: Path) -> AsyncIterator[str]:
    """The payload's agent.py on a free port of this host; yields its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PAYLOAD / "agent.py"),
        "127.0.0.1",
        "0",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONWARNINGS": "error"},
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line.startswith(b"listening on "), line
        yield line.decode().split()[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[str]:
    temporary = tmp_path / "guest"
    temporary.mkdir()
    async with running_agent(temporary) as address:
        yield address


@pytest.fixture
def task() -> Task:
    return Task(id=7, category="file", target="/samples/sample.sh", added_on="2024-01-02 03:04:05")
