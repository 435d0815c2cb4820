"""Everything at once for a while, with faults: nothing may leak, and every task comes to its end.

``CUCKOO_SOAK_MINUTES`` makes it longer: 30 before a release.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from soakserver import TOKEN

from cuckoo_api.artefacts.keepers import COUNT

MINUTES = float(os.environ.get("CUCKOO_SOAK_MINUTES", "0.2"))
ROUNDS = 2 if MINUTES < 3 else 6
"""The first fills caches; each of the others has to leave what it found."""
CLIENTS = 4
PATIENCE = 120.0
FINAL = {"reported", "failed_analysis", "failed_processing", "failed_reporting", "cancelled"}
FINAL |= {"recovered"}
GROWTH = 24 << 20
"""Bytes that a process may have more at the end than after the first round: it is not all its own
doing what the allocator keeps."""
THREADS = 32
"""Of all pools together; they grow as they are needed."""
OBJECTS = 0.02
"""Of the objects, likewise."""


class Server:
    """The process, and what it accepted."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, cwd: Path) -> None:
        self.process = process
        self.url = url
        self.cwd = cwd
        self.accepted: set[int] = set()
        self.deleted: set[int] = set()
        self.seen: Counter[str] = Counter()
        self.session = aiohttp.ClientSession(
            url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=aiohttp.ClientTimeout(60)
        )

    async def get(self, path: str, *allowed: int) -> Any:
        """The JSON at a path, or None for another status that is allowed."""
        async with self.session.get(path) as response:
            content = await response.read()
            assert response.status in (200, *allowed), (path, response.status, content)
            return json.loads(content) if response.status == 200 else None

    async def held(self, word: str = "state") -> dict[str, Any]:
        """What the process says that it holds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n".encode())
        await self.process.stdin.drain()
        async with asyncio.timeout(PATIENCE):
            found: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return found

    def memory(self) -> int:
        """Bytes that it has now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise AssertionError("it has ended")

    async def rest(self) -> None:
        """Until every task has come to its end, and no machine is leased."""
        deadline = time.monotonic() + PATIENCE
        while True:
            tasks = (await self.get("/tasks/list"))["tasks"]
            open_ = [task for task in tasks if task["status"] not in FINAL]
            machines = (await self.get("/machines/list"))["machines"]
            leased = [machine["name"] for machine in machines if machine["locked"]]
            if not open_ and not leased:
                return
            assert time.monotonic() < deadline, (open_, leased)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def serving(cwd: Path) -> AsyncIterator[Server]:
    """The server in a process of its own."""
    program = Path(__file__).with_name("soakserver.py")
    with (cwd / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), str(cwd)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=1 << 20,
        )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        url = (await process.stdout.readline()).decode().strip()
    assert url, (cwd / "server.log").read_text()[-3000:]
    server = Server(process, url, cwd)
    try:
        yield server
    finally:
        await server.session.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


class Client:
    """One who does what clients do, in any order."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.chance = random.Random(number)
        self.mine: list[int] = []

    async def work(self, until: float) -> None:
        """Until that moment."""
        deeds: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (3, self.upload),
            (1, self.submit_url),
            (4, self.list),
            (4, self.fetch),
            (2, self.archive),
            (2, self.delete),
            (1, self.cancel),
            (1, self.reschedule),
            (1, self.hang_up),
            (1, self.turn_away),
            (1, self.follow),
        ]
        weights = [weight for weight, _ in deeds]
        while time.monotonic() < until:
            [(_, deed)] = self.chance.choices(deeds, weights)
            await deed()
            self.server.seen[deed.__name__] += 1
            await asyncio.sleep(self.chance.random() * 0.2)

    def accept(self, task_id: int) -> None:
        self.server.accepted.add(task_id)
        self.mine.append(task_id)

    def some(self) -> int:
        return self.chance.choice(self.mine) if self.mine else 0

    def form(self, size: int) -> aiohttp.FormData:
        form = aiohttp.FormData()
        # some are known already
        content = b"#!/bin/sh\n" + self.chance.randbytes(8) * (size // 8)
        form.add_field("file", content, filename="sample.sh")
        form.add_field("platform", self.chance.choice(["linux", ""]))
        form.add_field("tags", self.chance.choice(["", "", "", "office"]))
        form.add_field("priority", str(self.chance.randint(1, 3)))
        return form

    async def upload(self) -> None:
        form = self.form(self.chance.choice([100, 1_000, 50_000, 500_000]))
        async with self.server.session.post("/tasks/create/file", data=form) as response:
            assert response.status == 200, await response.text()
            self.accept((await response.json())["task_id"])

    async def submit_url(self) -> None:
        data = {"url": f"http://sample.test/{self.chance.random()}"}
        async with self.server.session.post("/tasks/create/url", data=data) as response:
            assert response.status == 200, await response.text()
            self.accept((await response.json())["task_id"])

    async def list(self) -> None:
        for path in ("/tasks/list/20", "/machines/list", "/cuckoo/status", "/metrics"):
            async with self.server.session.get(path) as response:
                assert response.status == 200
                await response.read()

    async def fetch(self) -> None:
        for path in ("view", "report", "summary", "screenshots"):
            await self._read(f"/tasks/{path}/{self.some()}")
        await self._read(f"/pcap/get/{self.some()}")

    async def archive(self) -> None:
        await self._read(f"/tasks/report/{self.some()}/all?tar=gz")

    async def _read(self, path: str) -> None:
        async with self.server.session.get(path) as response:
            # a task may not be there any more, or not have that yet
            assert response.status in (200, 404, 500), (path, response.status)
            if self.chance.random() < 0.9:
                await response.read()  # else the client has seen enough

    async def delete(self) -> None:
        task_id = self.some()
        if task_id and await self.server.get(f"/tasks/delete/{task_id}", 404, 500) is not None:
            self.server.deleted.add(task_id)
            self.mine.remove(task_id)

    async def cancel(self) -> None:
        async with self.server.session.post(f"/tasks/cancel/{self.some()}") as response:
            assert response.status in (200, 404, 409)

    async def reschedule(self) -> None:
        answer = await self.server.get(f"/tasks/reschedule/{self.some()}", 404, 409)
        if answer is not None:
            self.accept(answer["task_id"])

    async def hang_up(self) -> None:
        """Go away in the middle of an upload."""
        host, _, port = self.server.url.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /tasks/create/file HTTP/1.1\r\nHost: localhost\r\n"
            + f"Authorization: Bearer {TOKEN}\r\n".encode()
            + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 900000\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + bytes(self.chance.randrange(200_000))
        )
        await writer.drain()
        writer.close()

    async def turn_away(self) -> None:
        """Be refused."""
        headers = {"Authorization": "Bearer wrong"}
        form = self.form(200_000)
        try:
            async with self.server.session.post(
                "/tasks/create/file", data=form, headers=headers
            ) as response:
                assert response.status == 401
        except aiohttp.ClientOSError:
            pass  # it was answered before all was sent

    async def follow(self) -> None:
        """Hear of a few events."""
        async with self.server.session.get("/events") as response:
            assert response.status == 200
            try:
                async with asyncio.timeout(self.chance.random()):
                    async for _ in response.content:
                        pass
            except TimeoutError:
                pass


async def test_everything_at_once_leaks_nothing_and_every_task_comes_to_its_end(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        clients = [Client(server, number) for number in range(CLIENTS)]
        states: list[dict[str, Any]] = []
        for _ in range(ROUNDS):
            until = time.monotonic() + MINUTES * 60 / ROUNDS
            await asyncio.gather(*(client.work(until) for client in clients))
            await server.rest()
            await server.session.close()  # no connection is kept
            state = await until_settled(server)
            children = psutil.Process(server.process.pid).children(recursive=True)
            state["children"] = [child.name() for child in children]
            states.append(state | {"memory": server.memory()})
            server.session = aiohttp.ClientSession(
                server.url,
                headers={"Authorization": f"Bearer {TOKEN}"},
                timeout=aiohttp.ClientTimeout(60),
            )
        shown = [{key: state[key] for key in ("memory", "objects", "threads")} for state in states]
        print(dict(server.seen), f"{len(server.accepted)} tasks", *shown, sep="\n")
        await check_tasks(server)
        check_growth(states)
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await server.process.wait() == 0
    log = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert [line for line in log if line["level"] == "critical" or "exception" in line] == []


async def until_settled(server: Server) -> dict[str, Any]:
    """What the process holds once all has come to rest: machines are mended meanwhile."""
    deadline, before = time.monotonic() + PATIENCE, None
    while True:
        now = await server.held("quiet")
        kinds = (now["tasks"], len(now["descriptors"]), now["running"])
        if kinds == before and not now["running"]:
            await server.held()
            return now
        assert time.monotonic() < deadline, kinds
        before = kinds
        await asyncio.sleep(0.8)  # longer than a machine rests


async def check_tasks(server: Server) -> None:
    """Every accepted task is final or was deleted; no file is left of what was deleted."""
    tasks = {task["id"]: task for task in (await server.get("/tasks/list"))["tasks"]}
    assert {task["status"] for task in tasks.values()} <= FINAL
    assert set(tasks) == server.accepted - server.deleted
    assert len(server.accepted) > 20
    reported = [task for task in tasks.values() if task["status"] == "reported"]
    assert len(reported) > len(tasks) / 4
    for task in reported:
        assert (await server.get(f"/tasks/report/{task['id']}"))["info"]["id"] == task["id"]
    storage = server.cwd / "storage"
    folders = {int(path.name) for path in (storage / "analyses").iterdir() if path.name.isdigit()}
    assert folders <= set(tasks)
    views = [(await server.get(f"/tasks/view/{task_id}"))["task"] for task_id in tasks]
    samples = {view["sample"]["sha256"] for view in views if view["sample"]}
    kept = {path.name for path in (storage / "binaries").iterdir()}
    assert {name for name in kept if len(name) == 64} == samples, kept - samples
    assert len(kept) == len(samples), kept - samples


def check_growth(states: list[dict[str, Any]]) -> None:
    """What the last round left is what the first did."""
    first, last = states[0], states[-1]
    assert last["tasks"] == first["tasks"]
    grown = Counter(map(kind, last["descriptors"]))
    grown.subtract(map(kind, first["descriptors"]))
    # the keepers of small uploads are started by the first crowd, whenever it comes
    assert +grown <= Counter(socket=COUNT), grown
    assert len(last["children"]) <= COUNT, last["children"]
    assert last["threads"] <= THREADS
    assert last["running"] == []
    assert last["objects"] < first["objects"] * (1 + OBJECTS)
    assert last["memory"] < first["memory"] + GROWTH


def kind(descriptor: str) -> str:
    """``socket`` of ``socket:[4711]``."""
    return descriptor.partition(":")[0]
