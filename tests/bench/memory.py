"""How much the server's memory grows while a GiB goes in, and while it comes out again."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from .figure import Figure
from .server import Server, real_server

SIZE = 1 << 30
BLOCK = 1 << 20
LIMIT = 32
"""MiB."""
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
TAIL = b"\r\n--b--\r\n"


def measure(folder: Path) -> list[Figure]:
    """Upload and download."""
    with real_server(folder / "cwd") as server:
        with _growth(server) as upload:
            sha256 = _upload(server)
        with _growth(server) as download:
            _download(server, sha256)
    return [_figure("1 GiB up", upload), _figure("1 GiB down", download)]


def _figure(name: str, growth: list[float]) -> Figure:
    return Figure(
        name=f"{name}: the server's memory grows by",
        pairs=[(growth[0], LIMIT)],
        yardstick="allowed",
        unit="MiB",
        at_most=1.0,
    )


@contextmanager
def _growth(server: Server) -> Iterator[list[float]]:
    """By how many MiB the most that was in memory exceeds what was there at the beginning."""
    process = Path(f"/proc/{server.pid}")
    (process / "clear_refs").write_text("5")  # forget the peak so far
    before = psutil.Process(server.pid).memory_info().rss
    growth: list[float] = []
    yield growth
    [peak] = [line for line in (process / "status").read_text().splitlines() if "VmHWM" in line]
    growth.append((int(peak.split()[1]) * 1024 - before) / (1 << 20))


def _upload(server: Server) -> str:
    """Send a file; its SHA-256."""
    block = os.urandom(BLOCK)
    digest = hashlib.sha256()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.putrequest("POST", "/tasks/create/file")
    connection.putheader("Authorization", f"Bearer {server.token}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(len(HEAD) + SIZE + len(TAIL)))
    connection.endheaders(HEAD)
    for _ in range(SIZE // BLOCK):
        connection.send(block)
        digest.update(block)
    connection.send(TAIL)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, content
    return digest.hexdigest()


def _download(server: Server, sha256: str) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    headers = {"Authorization": f"Bearer {server.token}"}
    connection.request("GET", f"/files/get/{sha256}", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read(1000)
    digest, size = hashlib.sha256(), 0
    while block := answer.read(BLOCK):
        digest.update(block)
        size += len(block)
    connection.close()
    assert (size, digest.hexdigest()) == (SIZE, sha256)
