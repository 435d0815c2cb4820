"""Many at once: two hundred uploads of 20 MiB, and a list of a hundred thousand tasks."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .figure import Figure
from .memory import HEAD, TAIL
from .server import Server, real_server

CLIENTS = 200
SIZE = 20 << 20
BLOCK = 256 << 10
CROWD = 300
"""MiB that the whole server may have in memory meanwhile."""
TASKS = 100_000
LIST = 32
"""MiB by which it may grow while it lists them all."""

COPIES = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
INSERT INTO tasks ({columns}) SELECT {values}
FROM n JOIN (SELECT * FROM tasks ORDER BY id LIMIT 1) AS first
"""


def measure(folder: Path) -> list[Figure]:
    """Uploads, then the list."""
    with real_server(folder / "cwd") as server:
        with peak(server.pid) as crowd:
            asyncio.run(upload_all(server, CLIENTS, SIZE))
        listed = list_all(server)  # once for what is made at a first use
        multiply(folder / "cwd" / "cuckoo.db", TASKS - listed)
        before = memory(server.pid, "VmRSS")
        with peak(server.pid) as whole:
            assert list_all(server) == TASKS
    many = f"{CLIENTS} uploads of {SIZE >> 20} MiB at once: the server's memory"
    return [
        _figure(many, crowd[0], CROWD),
        _figure(f"{TASKS:,} tasks listed: its memory grows by", whole[0] - before, LIST),
    ]


def _figure(name: str, measured: float, allowed: int) -> Figure:
    return Figure(
        name=name, pairs=[(measured, allowed)], yardstick="allowed", unit="MiB", at_most=1.0
    )


def memory(pid: int, line: str) -> float:
    """MiB: ``VmRSS`` what the process has in memory, ``VmHWM`` the most that it had."""
    for found in Path(f"/proc/{pid}/status").read_text().splitlines():
        if found.startswith(f"{line}:"):
            return int(found.split()[1]) / 1024
    raise AssertionError(line)


@contextmanager
def peak(pid: int) -> Iterator[list[float]]:
    """The most MiB that the process had in memory meanwhile."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak so far
    found: list[float] = []
    yield found
    found.append(memory(pid, "VmHWM"))


async def upload_all(server: Server, clients: int, size: int) -> list[int]:
    """That many clients send each a file of its own, at once; the ids of the tasks."""
    async with asyncio.TaskGroup() as group:
        sent = [group.create_task(_upload(server, number, size)) for number in range(clients)]
    ids = [task.result() for task in sent]
    assert len(set(ids)) == clients
    return ids


async def _upload(server: Server, number: int, size: int) -> int:
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    block = os.urandom(BLOCK)
    head = [
        "POST /tasks/create/file HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {server.token}",
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {len(HEAD) + size + len(TAIL)}",
        "Connection: close",
    ]
    try:
        writer.write("\r\n".join([*head, "", ""]).encode() + HEAD)
        for start in range(0, size, BLOCK):
            writer.write(block[: size - start])
            await writer.drain()
        writer.write(TAIL)
        answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    status, _, content = answer.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 200 "), (number, answer[:1000])
    return int(content.partition(b":")[2].strip(b" }"))


def multiply(database: Path, count: int) -> None:
    """Add that many copies of the first task, as fast as a database can."""
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(tasks)")]
        columns.remove("id")
        names = ", ".join(columns)
        connection.execute(COPIES.format(columns=names, values=names), {"count": count})


def list_all(server: Server) -> int:
    """Read the list of all tasks without keeping it; how many there are."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", "/tasks/list", headers={"Authorization": f"Bearer {server.token}"})
    answer = connection.getresponse()
    assert answer.status == 200
    count, rest = 0, b""
    key = b'"category":'
    while block := answer.read(BLOCK):
        rest += block
        count += rest.count(key)
        rest = rest[-len(key) + 1 :]
    connection.close()
    return count
