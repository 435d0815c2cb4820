"""A fake guest: an agent that answers while its machine runs, and plays an analysis."""

from __future__ import annotations

import asyncio
import configparser
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from cuckoo_api.testing.agent import FEATURES, FakeAgent
from cuckoo_api.testing.scripts import normal

Script = Callable[["GuestRun"], Awaitable[None]]
"""What happens after ``/execpy``. What it raises becomes the agent's status ``exception``."""


class GuestRun:
    """One analysis inside a guest, in the hands of a script."""

    def __init__(
        self, guest: FakeGuest, agent: FakeAgent, disk: dict[str, bytes], path: str
    ) -> None:
        self.disk = disk
        """The guest's files by full path; what the script writes is gone after a revert."""
        self.conf = _analysis_conf(disk, path)
        """``[analysis]`` of the analysis.conf that the server stored."""
        self._guest = guest
        self._agent = agent

    @property
    def sample(self) -> bytes | None:
        """The stored sample; None for a URL."""
        name = self.conf.get("file_name") or posixpath.basename(self.conf.get("target", ""))
        for path, content in self.disk.items():
            if name and posixpath.basename(path) == name:
                return content
        return None

    def status(self, status: str, description: str = "") -> None:
        """What ``GET /status`` answers from now on."""
        self._agent.status, self._agent.description = status, description

    @asynccontextmanager
    async def connect(self, first: bytes = b"") -> AsyncIterator[asyncio.StreamWriter]:
        """A connection to the result server at the address that analysis.conf names."""
        writer = await self._guest.reach(self.conf.get("ip", ""), int(self.conf.get("port", "0")))
        try:
            writer.write(first)
            yield writer
            await writer.drain()
        except BaseException:
            writer.transport.abort()
            raise
        writer.close()
        try:
            await writer.wait_closed()
        except asyncio.CancelledError:  # the power was cut before all was sent
            writer.transport.abort()
            raise

    @asynccontextmanager
    async def log(self) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
        """The LOG stream: a function that sends one line."""
        async with self.connect(b"LOG\n") as writer:

            async def line(text: str) -> None:
                writer.write(f"{text}\n".encode())
                await writer.drain()

            yield line

    async def upload(
        self, destination: str, data: bytes, *, path: str | None = None, pids: Sequence[int] = ()
    ) -> None:
        """FILE, or with the guest's ``path`` of it FILE 2."""
        head = f"FILE\n{destination}\n"
        if path is not None:
            head = f"FILE 2\n{destination}\n{path}\n{' '.join(map(str, pids))}\n"
        async with self.connect(head.encode()) as writer:
            writer.write(data)

    async def cut_power(self) -> None:
        """The machine dies. Does not return."""
        self._guest.cut_power()
        await asyncio.Event().wait()

    def kill_agent(self) -> None:
        """The agent never answers again; the machine runs on."""
        self._agent.running.clear()


class FakeGuest:
    """The inside of one fake machine.

    ``script`` is played at ``/execpy``; ``silent``: the agent takes connections and never
    answers; ``absent``: nothing listens; ``stubborn``: it does not restart when it is told to.
    Without ``ip`` the guest has unix sockets, one to its agent and one on which the core listens
    for its results. With ``ip`` (of 127.0.0.0/8, one a guest) it is a host on the loopback network:
    its agent listens there on ``port`` and its connections come from there; take
    ``Capability.ADDRESS`` from the plugin then.
    """

    def __init__(
        self,
        script: Script = normal,
        *,
        ip: str = "",
        port: int = 8000,
        silent: bool = False,
        absent: bool = False,
        stubborn: bool = False,
        version: str = "0.10",
        features: tuple[str, ...] = FEATURES,
    ) -> None:
        self.script = script
        self.silent = silent
        self.absent = absent
        self.stubborn = stubborn
        self.boots = 0
        self.requests: list[str] = []
        """``GET /status`` and so on, of every boot."""
        self.commands: list[str] = []
        """What it was told to execute."""
        self.runs: list[GuestRun] = []
        """The analyses that were started."""
        self.cut_power: Callable[[], None] = lambda: None
        self._ip, self._port = ip, port
        self._version, self._features = version, features
        self._host: dict[tuple[str, int], Path] = {}
        self._runner: web.AppRunner | None = None
        self._agent: FakeAgent | None = None
        self._analysis: asyncio.Task[None] | None = None

    def address(self, folder: Path, label: str) -> str:
        """Where the agent listens while the machine runs."""
        return f"{self._ip}:{self._port}" if self._ip else f"unix:{_socket(folder, label, 'agent')}"

    def sockets(
        self, folder: Path, label: str, ip: str, ports: Mapping[str, int]
    ) -> dict[str, Path]:
        """Where the core has to listen for what this guest sends to the host's services."""
        if self._ip:
            return {}
        paths = {name: _socket(folder, label, name) for name in ports}
        self._host = {(ip, ports[name]): path for name, path in paths.items()}
        return paths

    async def power_on(
        self,
        disk: dict[str, bytes],
        folder: Path,
        label: str,
        cut_power: Callable[[], None],
        restart: Callable[[], None],
    ) -> None:
        """Boot: the agent listens when this returns."""
        self.cut_power = cut_power
        self.boots += 1
        if self.absent:
            return
        agent = FakeAgent(
            disk,
            lambda path: self._play(agent, disk, path),
            (lambda: None) if self.stubborn else restart,
            silent=self.silent,
            version=self._version,
            features=self._features,
        )
        agent.requests, agent.commands = self.requests, self.commands
        self._agent = agent
        # not 0: aiohttp takes that for no limit
        self._runner = web.AppRunner(agent.application(), shutdown_timeout=1e-3, access_log=None)
        await self._runner.setup()
        if self._ip:
            await web.TCPSite(self._runner, self._ip, self._port).start()
        else:
            path = _socket(folder, label, "agent")
            path.unlink(missing_ok=True)
            await web.UnixSite(self._runner, path).start()

    async def power_off(self) -> None:
        """Everything inside ends at once."""
        analysis, self._analysis = self._analysis, None
        if analysis is not None:
            analysis.cancel()
            await asyncio.wait({analysis})
        runner, self._runner, self._agent = self._runner, None, None
        if runner is not None:
            await runner.cleanup()

    def freeze(self, *, frozen: bool) -> None:
        """Stop answering, or go on."""
        if self._agent is not None:
            if frozen:
                self._agent.running.clear()
            else:
                self._agent.running.set()

    async def reach(self, ip: str, port: int) -> asyncio.StreamWriter:
        """Connect to the host as this guest."""
        if self._ip:
            _, writer = await asyncio.open_connection(ip, port, local_addr=(self._ip, 0))
        else:
            if (ip, port) not in self._host:
                raise ConnectionRefusedError(f"{ip}:{port}: no service of the host is there")
            _, writer = await asyncio.open_unix_connection(self._host[ip, port])
        return writer

    def _play(self, agent: FakeAgent, disk: dict[str, bytes], path: str) -> None:
        run = GuestRun(self, agent, disk, path)
        self.runs.append(run)
        self._analysis = asyncio.create_task(self._run_script(run), name="fake analysis")

    async def _run_script(self, run: GuestRun) -> None:
        try:
            await self.script(run)
        except Exception as exc:  # noqa: BLE001 - an analyzer reports whatever it dies of
            run.status("exception", f"{type(exc).__name__}: {exc}")


def _socket(folder: Path, label: str, kind: str) -> Path:
    return folder / f"{label}.{kind}"


def _analysis_conf(disk: Mapping[str, bytes], program: str) -> dict[str, str]:
    path = posixpath.join(posixpath.dirname(program), "analysis.conf")
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(disk.get(path, b"").decode())
    return dict(parser["analysis"]) if parser.has_section("analysis") else {}
