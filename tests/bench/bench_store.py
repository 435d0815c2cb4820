"""How fast the store and the artefacts are, alone and below an aiohttp handler.

    python tests/bench/bench_store.py [--folder DIR] [--rounds N]

The figures of one machine say little; the ratios travel. Whatever is compared runs in turns, and
the median round counts: on a busy machine the order of two runs is worth more than their code.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import shutil
import socket
import sqlite3
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
from aiohttp import BodyPartReader, web

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import NewTask
from cuckoo_api.store import Store, TaskFilter

CLIENTS = 32
BODY = 64 << 10
TARGETS = {"view": 2500 / 14000, "list/100": 0.04, "submit 64 KiB": 840 / 14000}
"""The least share of a bare handler's requests a second."""


def new_task(**fields: object) -> NewTask:
    return NewTask(
        category="file",
        target="invoice.exe",
        options={"procmemdump": "yes"},
        platform="windows",
        tags=["office"],
        **fields,  # type: ignore[arg-type]  # the caller's
    )


def new_sample(number: int) -> NewSample:
    digest = hashlib.sha512(str(number).encode()).hexdigest()
    return NewSample(
        md5=digest[:32],
        sha1=digest[:40],
        sha256=digest[:64],
        sha512=digest,
        crc32="3610A686",
        ssdeep="3:iKn:hn",
        file_size=BODY,
        file_type="PE32 executable (GUI) Intel 80386, for MS Windows",
    )


def machine(platform: str) -> Machine:
    return Machine(
        id=0, name="one", label="one", manager="bench", ip="192.0.2.1", platform=platform,
        resultserver_ip="192.0.2.254", resultserver_port=2042,
    )  # fmt: skip


async def rate(operation: Callable[[int], Awaitable[object]], total: int, clients: int) -> float:
    """Operations a second, with so many at the same time."""
    numbers = iter(range(total))

    async def client() -> None:
        for number in numbers:
            await operation(number)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return total / (time.perf_counter() - start)


# -- the store alone ---------------------------------------------------------------------------


def raw_selects(path: Path, total: int) -> float:
    """What sqlite3 does in its own thread, without any hop."""
    connection = sqlite3.connect(path)
    start = time.perf_counter()
    for number in range(total):
        connection.execute("SELECT * FROM tasks WHERE id = ?", (1 + number % 1000,)).fetchall()
    elapsed = time.perf_counter() - start
    connection.close()
    return total / elapsed


def raw_inserts(folder: Path, total: int) -> float:
    """What sqlite3 does when every row is a transaction of its own, and durable."""
    connection = sqlite3.connect(folder / "raw.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, target TEXT)")
    start = time.perf_counter()
    for _ in range(total):
        connection.execute("INSERT INTO tasks (target) VALUES ('invoice.exe')")
    elapsed = time.perf_counter() - start
    connection.close()
    return total / elapsed


async def bench_store(folder: Path) -> None:
    store = await Store.open(f"sqlite:///{folder}/cuckoo.db")
    inserts = raw_inserts(folder, 1000)
    print(f"sqlite3, one row a transaction      {inserts:10,.0f} /s")
    serial = 0
    for clients in (1, 16, 64):
        total = 500 if clients == 1 else 4000
        first = serial

        async def submit(number: int, first: int = first) -> None:
            await store.tasks.submit([new_task()], new_sample(first + number))

        figure = await rate(submit, total, clients)
        serial += total
        print(
            f"submit, {clients:2} at a time             {figure:10,.0f} /s {figure / inserts:6.2f}x"
        )
    selects = raw_selects(folder / "cuckoo.db", 5000)
    print(f"sqlite3, select by id               {selects:10,.0f} /s")
    for clients in (1, 16, 64):
        figure = await rate(lambda n: store.tasks.get(1 + n % 1000), 5000, clients)
        print(
            f"get, {clients:2} at a time                {figure:10,.0f} /s {figure / selects:6.2f}x"
        )
    figure = await rate(lambda _: store.tasks.page(TaskFilter(), limit=100), 300, 1)
    print(f"page of 100                         {figure:10,.0f} /s")
    await bench_queue(store)
    await store.close()


async def bench_queue(store: Store) -> None:
    for size in (1000, 100_000):
        have = sum((await store.tasks.counts()).values())
        for _ in range(have, size, 5000):
            await store.tasks.submit([new_task() for _ in range(5000)])
        pending = sum((await store.tasks.counts()).values())
        [one] = await store.machines.sync([machine("linux")])
        start = time.perf_counter()
        assert await store.tasks.claim(one) is None
        elapsed = time.perf_counter() - start
        print(f"claim, {pending:7,} pending, none fits  {elapsed * 1e3:10.2f} ms")
        one = msgspec.structs.replace(one, platform="windows", tags=["office"])
        start = time.perf_counter()
        assert await store.tasks.claim(one) is not None
        elapsed = time.perf_counter() - start
        await store.machines.unlock("one")
        print(f"claim, {pending:7,} pending, all fit    {elapsed * 1e3:10.2f} ms")
    tracemalloc.start()
    start, number = time.perf_counter(), 0
    async for _ in store.tasks.each(TaskFilter()):
        number += 1
    elapsed = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"each, {number:7,} tasks (memory traced)  {number / elapsed:10,.0f} tasks/s, "
          f"peak {peak / 1024:,.0f} KiB")  # fmt: skip


# -- below HTTP --------------------------------------------------------------------------------


async def serve(folder: Path, ready: Connection) -> None:
    store = await Store.open(f"sqlite:///{folder}/http.db")
    await store.tasks.submit([new_task() for _ in range(1000)], new_sample(0))
    artefacts = Artefacts(folder / "storage")
    await artefacts.open()
    encode = msgspec.json.Encoder().encode

    async def bare(_request: web.Request) -> web.Response:
        return web.Response(body=b'{"message": "ok"}', content_type="application/json")

    async def view(request: web.Request) -> web.Response:
        task = await store.tasks.get(int(request.match_info["id"]))
        return web.Response(body=encode({"task": task}), content_type="application/json")

    async def listed(_request: web.Request) -> web.Response:
        tasks = await store.tasks.page(TaskFilter(), limit=100)
        return web.Response(body=encode({"tasks": tasks}), content_type="application/json")

    async def create(request: web.Request) -> web.Response:
        part = await (await request.multipart()).next()
        assert isinstance(part, BodyPartReader)
        async with artefacts.receive(max_size=1 << 30) as upload:
            while chunk := await part.read_chunk(256 << 10):
                await upload.write(chunk)
            sample = await upload.finish()
        [task_id] = await store.tasks.submit([new_task()], sample)
        return web.Response(body=encode({"task_id": task_id}), content_type="application/json")

    app = web.Application(client_max_size=0)
    app.add_routes(
        [web.get("/bare", bare), web.get("/view/{id}", view), web.get("/list", listed),
         web.post("/create", create)]
    )  # fmt: skip
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    ready.send(listener.getsockname()[1])
    await asyncio.get_running_loop().run_in_executor(None, ready.poll, None)
    await runner.cleanup()
    await artefacts.close()
    await store.close()


def run_server(folder: Path, ready: Connection) -> None:
    asyncio.run(serve(folder, ready))


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, request: Callable[[], bytes | None]) -> None:
        self._request = request
        self._left = 0
        self._head = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        request = self._request()
        if request is None:
            self._transport.close()
            self.done.set_result(None)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = b""
            assert head.startswith(b"HTTP/1.1 200"), head + data
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
            self._left = int(length)
        self._left -= len(data)
        if not self._left:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server hung up"))


def requests_for(kind: str) -> Callable[[int], bytes]:
    if kind != "submit 64 KiB":
        path = {"bare": "/bare", "view": "/view/7", "list/100": "/list"}[kind]
        text = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        return lambda _: text
    noise = os.urandom(BODY - 16)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.exe"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    first = (
        "POST /create HTTP/1.1\r\nHost: bench\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(head) + BODY + len(tail)}\r\n\r\n"
    ).encode()
    # each is another file: nothing is saved by its being there
    return lambda _: b"".join((first, head, os.urandom(16), noise, tail))


async def load(port: int, kind: str, total: int) -> float:
    make, numbers = requests_for(kind), iter(range(total))

    def request() -> bytes | None:
        number = next(numbers, None)
        return None if number is None else make(number)

    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    pairs = [
        await loop.create_connection(lambda: Client(request), "127.0.0.1", port)
        for _ in range(CLIENTS)
    ]
    await asyncio.gather(*(client.done for _, client in pairs))
    return total / (time.perf_counter() - start)


async def bench_http(folder: Path, rounds: int) -> None:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=run_server, args=(folder, there))
    server.start()
    try:
        port = await asyncio.to_thread(here.recv)
        totals = {"bare": 8000, "view": 4000, "list/100": 600, "submit 64 KiB": 600}
        figures: dict[str, list[float]] = {kind: [] for kind in totals}
        for _ in range(rounds):
            for kind, total in totals.items():
                figures[kind].append(await load(port, kind, total))
    finally:
        here.send(None)
        await asyncio.to_thread(server.join)
    bare = statistics.median(figures["bare"])
    for kind, values in figures.items():
        figure = statistics.median(values)
        target = TARGETS.get(kind)
        verdict = "" if target is None else (
            f"  target {target:.1%}: {'met' if figure / bare >= target else 'MISSED'}"
        )  # fmt: skip
        print(f"{kind:14} {figure:8,.0f} req/s ({min(values):,.0f} to {max(values):,.0f})"
              f" {figure / bare:7.1%} of bare{verdict}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the store and the artefacts")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-store-", dir=arguments.folder))
    try:
        asyncio.run(bench_store(folder))
        asyncio.run(bench_http(folder, arguments.rounds))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
