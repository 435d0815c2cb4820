"""A guest that floods: memory, files, connections and words stay within their bounds."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import socket
import threading
import tracemalloc
from pathlib import Path

import pytest
from resultskit import LIMITS, Rig, until

from cuckoo_api.results import ResultServer
from cuckoo_api.results.connection import BLOCK
from cuckoo_api.results.files import ResultFiles, write_all
from cuckoo_api.settings import ResultServerSection

pytestmark = pytest.mark.slow


async def test_a_file_is_cut_and_marked(rig: Rig) -> None:
    await rig.send(b"FILE\nfiles/whole\n" + b"x" * 100_000)
    await rig.send(b"FILE\nfiles/big\n" + b"x" * 500_000)
    assert len(rig.read("files/big")) == 100_000
    assert rig.listed() == [
        {"path": "files/whole", "filepath": None, "pids": [], "size": 100_000},
        {"path": "files/big", "filepath": None, "pids": [], "size": 100_000, "truncated": True},
    ]
    assert rig.session.errors == ["Result server: files/big was cut after 100000 bytes"]


async def test_a_log_is_cut(rig: Rig) -> None:
    await rig.send(b"LOG\n" + b"x" * 500_000)
    assert len(rig.read("analysis.log")) == 100_000
    assert rig.session.errors == ["Result server: analysis.log was cut after 100000 bytes"]


async def test_all_files_together_are_bounded(rig: Rig) -> None:
    contents = [b"FILE\nfiles/%d\n" % number + b"x" * 90_000 for number in range(6)]
    await asyncio.gather(*map(rig.upload, contents))
    assert await rig.session.wait_idle(5, settle=0)
    sizes = [path.stat().st_size for path in (rig.folder / "files").iterdir()]
    assert sum(sizes) == rig.session.bytes_received == LIMITS.max_total_size
    assert len(rig.session.errors) == sum(size < 90_000 for size in sizes)


async def test_files_are_counted(rig: Rig) -> None:
    for number in range(LIMITS.max_files + 5):
        await rig.send(b"FILE\nfiles/%d\n" % number)
    assert len(list((rig.folder / "files").iterdir())) == rig.session.files == LIMITS.max_files
    assert rig.session.errors == ["Result server: more than 60 files"] * 5


async def test_connections_are_counted(rig: Rig) -> None:
    idle = [await rig.connect() for _ in range(LIMITS.max_connections)]
    await until(lambda: rig.session.connections == LIMITS.max_connections)
    late, writer = await rig.connect()
    assert await late.read() == b"", "the ninth is hung up on"
    writer.close()
    assert rig.session.errors == ["Result server: more than 8 connections at once"]
    for _, writer in idle:
        writer.close()
    assert await rig.session.wait_idle(5, settle=0)
    await rig.send(b"FILE\nfiles/a\nx")
    assert rig.read("files/a") == b"x", "there is room again"


async def test_refusals_are_counted_not_collected(rig: Rig) -> None:
    for _ in range(60):
        await rig.send(b"FILE\nfiles/" + b"\xff" * 3000 + b"\n")
    assert len(rig.session.errors) == 21
    assert rig.session.errors[-1] == "Result server: 40 more of these"
    assert sum(map(len, rig.session.errors)) < 10_000


async def test_an_idle_guest_is_hung_up_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuckoo_api.results.session.HEADER_TIMEOUT", 0.05)
    reader, writer = await rig.connect()
    writer.write(b"FILE 2\nfiles/a\n")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert rig.session.errors == ["Result server: a connection that did not say what it is for"]


async def test_a_slow_disk_slows_the_guest_and_fills_no_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, content = 4, b"0123456789abcdef" * (1 << 17)  # 2 MiB, through a socket's 200 KiB
    disk = threading.Event()

    def slow(handle: int, data: bytes) -> None:
        disk.wait(5)
        write_all(handle, data)

    async def guest(number: int) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, str(tmp_path / "results"))
            await loop.sock_sendall(connection, b"FILE\nfiles/%d\n" % number)
            await loop.sock_sendall(connection, content)

    monkeypatch.setattr("cuckoo_api.results.session.write_all", slow)
    loop = asyncio.get_running_loop()
    server = ResultServer(ResultServerSection())
    async with server.session(1, folder, socket=tmp_path / "results") as session:
        tracemalloc.start()
        try:
            sending = [asyncio.create_task(guest(number)) for number in range(count)]
            await until(lambda: session.connections == count)
            await until(lambda: all(c.waiting == BLOCK for c in session._serving.values()))
            assert not any(task.done() for task in sending), "the guests have to wait"
            assert tracemalloc.get_traced_memory()[1] < count * (256 << 10)
        finally:
            disk.set()
            tracemalloc.stop()
        await asyncio.gather(*sending)
        assert await session.wait_idle(5, settle=0)
    await server.close()
    for number in range(count):
        kept = hashlib.sha256((folder / "files" / str(number)).read_bytes()).digest()
        assert kept == hashlib.sha256(content).digest()


async def test_a_full_disk_is_said_and_the_server_lives(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> None:
        write_all(handle, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cuckoo_api.results.session.write_all", full)
        await rig.send(b"FILE\nfiles/a\n" + b"x" * 50)
    assert rig.session.errors == ["Result server: the host's disk is full"]
    assert [(entry["size"], entry["truncated"]) for entry in rig.listed()] == [(10, True)]
    await rig.send(b"FILE\nfiles/b\nx")
    assert rig.read("files/b") == b"x"


async def test_half_a_line_in_files_json_is_taken_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> None:
        write_all(handle, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    await rig.send(b"FILE\nfiles/a\nx")
    with monkeypatch.context() as patch:
        patch.setattr("cuckoo_api.results.files.write_all", full)
        await rig.send(b"FILE\nfiles/b\nx")
    await rig.send(b"FILE\nfiles/c\nx")
    assert [entry["path"] for entry in rig.listed()] == ["files/a", "files/c"]
    assert rig.session.errors == ["Result server: the host's disk is full"]


async def test_a_folder_that_went_away_is_said(rig: Rig) -> None:
    (rig.folder / "shots").rmdir()
    await rig.send(b"FILE\nshots/0001.jpg\nx")
    assert rig.session.errors == [
        "Result server: the host could not write a file: No such file or directory"
    ]


async def test_a_cancel_in_the_middle_of_a_write_leaves_no_file_open(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, busy = threading.Event(), threading.Event()

    def slow(handle: int, data: bytes) -> None:
        busy.set()
        disk.wait(10)
        write_all(handle, data)

    monkeypatch.setattr("cuckoo_api.results.session.write_all", slow)
    before = len(list(Path("/proc/self/fd").iterdir()))
    _, writer = await rig.connect()
    writer.write(b"FILE\nfiles/a\ncontent")
    await until(busy.is_set)
    closing = [asyncio.create_task(rig.session.close()) for _ in range(2)]  # cancelled twice
    await asyncio.sleep(0)
    disk.set()
    await asyncio.gather(*closing)
    writer.close()
    await writer.wait_closed()
    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) == before)
    assert rig.read("files/a") == b"content"


async def test_a_cancel_while_a_file_is_made_leaves_it_closed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, busy = threading.Event(), threading.Event()
    create = ResultFiles.create

    def slow(files: ResultFiles, destination: str) -> int:
        busy.set()
        disk.wait(5)
        return create(files, destination)

    monkeypatch.setattr(ResultFiles, "create", slow)
    before = len(list(Path("/proc/self/fd").iterdir()))
    _, writer = await rig.connect()
    writer.write(b"FILE\nfiles/a\ncontent")
    await until(busy.is_set)
    closing = asyncio.create_task(rig.session.close())
    await asyncio.sleep(0)
    disk.set()
    await closing
    writer.close()
    await writer.wait_closed()
    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) == before)


async def test_the_guest_is_hung_up_on_when_its_file_is_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, busy = threading.Event(), threading.Event()

    def slow(handle: int, data: bytes) -> None:
        busy.set()
        disk.wait(5)
        write_all(handle, data)

    monkeypatch.setattr("cuckoo_api.results.session.write_all", slow)
    reader, writer = await rig.connect()
    writer.write(b"FILE\nfiles/a\ncontent")
    writer.write_eof()
    end = asyncio.create_task(reader.read())
    await until(busy.is_set)
    await asyncio.wait({end}, timeout=0.05)
    assert not end.done()
    disk.set()
    assert await end == b""
    assert rig.read("files/a") == b"content"
    writer.close()
