"""Many clients at once, and long answers, cost little memory: ``tests/bench`` in small."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.crowd import list_all, memory, multiply, peak, upload_all
from bench.server import Server, real_server

pytestmark = pytest.mark.slow

CLIENTS = 40
SIZE = 3 << 20
FOR_ALL = 48
"""MiB that the server may grow by for what it makes once: threads, libmagic's data and buffers."""
TASKS = 30_000
TASK = 600
"""Bytes of one in a list, at least."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server in a process of its own, with one task."""
    with real_server(tmp_path / "cwd", tasks=1) as made:
        yield made


def test_an_upload_takes_less_than_a_mebibyte_however_many_there_are(server: Server) -> None:
    before = memory(server.pid, "VmRSS")
    with peak(server.pid) as most:
        ids = asyncio.run(upload_all(server, CLIENTS, SIZE))
    assert sorted(ids) == list(range(2, CLIENTS + 2))
    assert most[0] - before < CLIENTS + FOR_ALL < CLIENTS * SIZE / (1 << 20)


def test_a_list_without_a_limit_is_never_whole_in_memory(server: Server, tmp_path: Path) -> None:
    assert list_all(server) == 1
    multiply(tmp_path / "cwd" / "cuckoo.db", TASKS - 1)
    before = memory(server.pid, "VmRSS")
    with peak(server.pid) as most:
        assert list_all(server) == TASKS
    assert most[0] - before < TASKS * TASK / (1 << 20) / 2
