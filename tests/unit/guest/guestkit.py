"""A result server of a few lines, and the guest's agent as a process of this host."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from cuckoo_api.guest.analyzer import PAYLOAD


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


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[ResultListener]:
    """A listener on a free port."""
    listener = ResultListener()
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


@contextlib.contextmanager
def running_agent(temporary: Path, agent: Path = PAYLOAD / "agent.py") -> Iterator[str]:
    """An agent.py on a free port of this host; yields its address."""
    environ = {**os.environ, "TMPDIR": str(temporary), "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(agent), "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), line
            yield line.split()[-1]
        finally:
            process.kill()


def payload_module(name: str) -> ModuleType:
    """A module of the payload, loaded by its path as a guest would."""
    folder = PAYLOAD if name == "agent" else PAYLOAD / "analyzers/linux"
    spec = importlib.util.spec_from_file_location(f"payload_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        # the bare names of a guest's modules mean nothing to other tests
        for loaded in set(sys.modules) - before:
            if getattr(sys.modules[loaded], "__file__", None) == str(folder / f"{loaded}.py"):
                del sys.modules[loaded]
    return module
