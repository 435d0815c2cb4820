"""The real server with real QEMU guests, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from cuckoo_api.fleet import load_plugins
from cuckoo_api.settings import init_cwd
from cuckoo_api.settings.init import with_value
from cuckoo_api.testing.guestimage import guest_image

START_TIMEOUT = 60
STOP_TIMEOUT = 60
ANALYSIS_TIMEOUT = 180
DONE = {"reported", "failed_analysis", "failed_processing", "failed_reporting", "cancelled"}


class Namespace:
    """A network namespace: what a server leaves in it is seen, and goes with it."""

    def __init__(self, name: str = "") -> None:
        self.name = name or f"ckt{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        run("ip", "netns", "add", self.name)
        run(*self.inside("ip", "link", "set", "lo", "up"))
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        run("ip", "netns", "delete", self.name)

    def inside(self, *command: str) -> list[str]:
        """The words that run a command in here."""
        return ["ip", "netns", "exec", self.name, *command]

    def pids(self) -> list[int]:
        """Every process in here."""
        return [int(word) for word in run("ip", "netns", "pids", self.name).split()]

    def pids_of(self, program: str) -> list[int]:
        """The processes in here that run a program of this name."""
        return [pid for pid in self.pids() if program in _name(pid)]

    def links(self) -> set[str]:
        """Every interface but the loopback and what the kernel makes by itself."""
        shown = json.loads(run(*self.inside("ip", "-json", "link")))
        return {link["ifname"] for link in shown if link.get("link_type") != "loopback"} - _DEFAULT

    async def without(self, prefix: str, seconds: float = 10) -> None:
        """Until no interface of such a name is left: the kernel takes them down by and by."""
        async with asyncio.timeout(seconds):
            while any(link.startswith(prefix) for link in self.links()):
                await asyncio.sleep(0.02)

    def rules(self) -> str:
        """The firewall as it is in here."""
        return run(*self.inside("nft", "list", "ruleset"))

    async def empty(self, seconds: float = 10) -> None:
        """Until no process is left in here: what the kernel was told to kill takes a moment."""
        async with asyncio.timeout(seconds):
            while self.pids():
                await asyncio.sleep(0.02)


_DEFAULT = {"ifb0", "ifb1", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "sit0", "ip6tnl0"}
"""What some kernels put into every new namespace."""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def run(*command: str) -> str:
    """A command's standard output; its standard error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Site:
    """A working directory with machines, and the server on it."""

    cwd: Path
    namespace: Namespace
    prefix: Sequence[str] = ()
    """Words between the namespace's and the server's: to take rights away."""
    python: str = sys.executable
    """Of the environment that the server is installed in."""
    process: asyncio.subprocess.Process | None = None
    session: aiohttp.ClientSession | None = None
    said: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        """What the servers on this directory have logged."""
        return (self.cwd / "log" / "server.log").read_text(errors="replace")

    def command(self, *words: str) -> list[str]:
        """``cuckoo`` in the namespace."""
        cuckoo = [self.python, "-m", "cuckoo_api", "--cwd", str(self.cwd), *words]
        return self.namespace.inside(*self.prefix, *cuckoo)

    async def start(self) -> None:
        """Start the server and wait until it listens."""
        socket = self.cwd / "api.sock"
        socket.unlink(missing_ok=True)
        with (self.cwd / "log" / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command("api", "--socket", str(socket)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT):
            line = await self.process.stdout.readline()
        assert b"listens on" in line, self.log[-3000:]
        token = _value(self.cwd / "conf" / "cuckoo.conf", "api_token")
        self.session = aiohttp.ClientSession(
            "http://localhost",
            connector=aiohttp.UnixConnector(str(socket)),
            headers={"Authorization": f"Bearer {token}"},
        )

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """kill -9, at once."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        async with asyncio.timeout(STOP_TIMEOUT):
            code = await process.wait()
        if self.session is not None:
            await self.session.close()
        return code

    async def get(self, path: str) -> Any:
        """The JSON at a path."""
        assert self.session is not None
        async with self.session.get(path) as response:
            content = await response.json()
        assert response.status == 200, (path, response.status, content)
        return content

    async def submit(self, content: bytes | Path, name: str, **fields: object) -> int:
        """A file; its task's id."""
        assert self.session is not None
        form = aiohttp.FormData({key: str(value) for key, value in fields.items()})
        data = content.read_bytes() if isinstance(content, Path) else content
        form.add_field("file", data, filename=name)
        async with self.session.post("/tasks/create/file", data=form) as response:
            answer = await response.json()
        assert response.status == 200, answer
        return int(answer["task_id"])

    async def task(self, task_id: int) -> dict[str, Any]:
        """A task as it stands."""
        task: dict[str, Any] = (await self.get(f"/tasks/view/{task_id}"))["task"]
        return task

    async def until(self, task_id: int, *states: str, seconds: float = ANALYSIS_TIMEOUT) -> Any:
        """The task once it is in one of the states."""
        task: dict[str, Any] = {}
        deadline = time.monotonic() + seconds
        while task.get("status") not in states:
            assert time.monotonic() < deadline, (task, self.log[-4000:])
            await asyncio.sleep(0.05)
            task = await self.task(task_id)
        return task

    async def running(self, task_id: int, trace: bytes = b"execve") -> None:
        """Until the sample runs in its guest, and its trace holds these words."""
        deadline = time.monotonic() + START_TIMEOUT
        folder = self.folder(task_id) / "logs"
        # the trace arrives while the sample runs
        while not any(trace in path.read_bytes() for path in folder.glob("*.strace")):
            assert time.monotonic() < deadline, self.log[-4000:]
            await asyncio.sleep(0.02)

    async def cancel(self, task_id: int) -> None:
        """End a task before its time."""
        assert self.session is not None
        async with self.session.post(f"/tasks/cancel/{task_id}") as response:
            assert response.status == 200, await response.text()

    async def free(self, seconds: float = START_TIMEOUT) -> None:
        """Until no machine is in use."""
        deadline = time.monotonic() + seconds
        while any(m["locked"] for m in (await self.get("/machines/list"))["machines"]):
            assert time.monotonic() < deadline, self.log[-4000:]
            await asyncio.sleep(0.05)

    async def analyse(self, content: bytes | Path, name: str, **fields: object) -> Any:
        """Submit, wait for the report, and return it; the task must have been reported."""
        task_id = await self.submit(content, name, **fields)
        task = await self.until(task_id, *DONE)
        assert task["status"] == "reported", (task, self.log[-4000:])
        return await self.get(f"/tasks/report/{task_id}")

    def folder(self, task_id: int) -> Path:
        """Where the task's results lie."""
        return self.cwd / "storage" / "analyses" / str(task_id)

    async def assert_nothing_held(self) -> None:
        """Every machine is off, free and well, and no QEMU is left."""
        for machine in (await self.get("/machines/list"))["machines"]:
            assert (machine["status"], machine["locked"]) == ("poweroff", False), machine
        assert not self.namespace.pids_of("qemu-system")

    async def assert_nothing_left(self) -> None:
        """After the server has stopped: no process, no interface, no rule."""
        await self.namespace.empty()
        assert self.namespace.links() == set()
        assert self.namespace.rules() == ""


NewSite = Callable[..., Awaitable[Site]]


def new_cwd(cwd: Path, like: Path, **values: str) -> Path:
    """A working directory with the machines and snapshots of another; settings by ``section.key``.

    Snapshots are never written to by a start, so they are shared by a link.
    """
    init_cwd(cwd, list(load_plugins().values()))
    shutil.copy(like / "conf" / "qemu.conf", cwd / "conf" / "qemu.conf")
    (cwd / "guests").symlink_to(like / "guests")
    for snapshots in (like / "machinery" / "qemu").glob("*/snapshots"):
        own = cwd / "machinery" / "qemu" / snapshots.parent.name
        own.mkdir(mode=0o700, parents=True)
        (own / "snapshots").symlink_to(snapshots)
    accel = like / "machinery" / "qemu" / "accel.json"
    if accel.exists():
        shutil.copy(accel, cwd / "machinery" / "qemu")
    configure(cwd, "cuckoo", {"cuckoo.freespace": "64"} | values)
    return cwd


def place_guest(cwd: Path) -> None:
    """Put the guest's image where ``guest build`` looks for it.

    In a namespace of ours there is no way to Debian's packages, so it is built out here.
    """
    (cwd / "guests").mkdir(parents=True)
    guest_image(cwd / "guests" / "linux")


def configure(cwd: Path, name: str, values: dict[str, str]) -> None:
    """Change settings of a file, ``section.key`` to value."""
    path = cwd / "conf" / f"{name}.conf"
    text = path.read_text()
    for where, value in values.items():
        section, _, key = where.partition(".")
        text = with_value(text, section, key, value)
    path.write_text(text)


def _value(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() == key:
            return value.strip()
    raise AssertionError(f"{path} has no {key}")
