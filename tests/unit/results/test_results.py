"""The result server takes what the protocol allows, and nothing else, from anybody."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.results import ResultServer, ResultSession
from cuckoo_api.results.protocol import (
    FOLDERS,
    Refused,
    parse_command,
    parse_destination,
    parse_pids,
)
from cuckoo_api.settings import ResultServerSection

LIMITS = ResultServerSection(
    upload_max_size=100_000, max_total_size=250_000, max_connections=8, max_files=60
)


class Rig:
    """A server with one session, and the guest's end of it."""

    def __init__(self, server: ResultServer, session: ResultSession, folder: Path) -> None:
        self.server = server
        self.session = session
        self.folder = folder

    async def connect(self, source: str = "127.0.0.1") -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.server.ports[0], local_addr=(source, 0)
        )
        self.reader = reader
        return writer

    async def send(self, data: bytes) -> None:
        """Send, hang up, and wait until the server has dealt with it."""
        writer = await self.connect()
        try:
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            await self.reader.read()
        except ConnectionError:
            pass  # cut off: the test looks at what was kept
        writer.close()
        assert await self.session.wait_idle(5)

    def files(self) -> list[dict[str, object]]:
        path = self.folder / "files.json"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    folder = tmp_path / "1"
    for name in (*FOLDERS, "logs"):
        (folder / name).mkdir(parents=True)
    async with AsyncExitStack() as undo:
        server = ResultServer(LIMITS)
        await server.open([("127.0.0.1", 0)])
        undo.push_async_callback(server.close)
        session = await undo.enter_async_context(server.session(1, folder, ip="127.0.0.1"))
        yield Rig(server, session, folder)


async def test_a_log_is_taken_once(rig: Rig) -> None:
    await rig.send(b"LOG\nfirst line\nsecond \xff line\n")
    assert rig.session.log_closed.is_set()
    await rig.send(b"LOG\nanother\n")
    assert (rig.folder / "analysis.log").read_bytes() == b"first line\nsecond \xff line\n"
    assert rig.session.errors == ["Result server: a second log"]


async def test_files_of_both_versions_and_bson(rig: Rig) -> None:
    await rig.send(b"FILE\nshots/0001.jpg\njpeg")
    await rig.send(b"FILE 2\nfiles/abc_x\n/tmp/x y\n12 34\ncontent\n")
    await rig.send(b"BSON 77\n\0\1\2")
    await rig.send(b"FILE 2\nlogs/trace.strace\n\n\n1 2 execve() = 0\n")
    assert (rig.folder / "shots" / "0001.jpg").read_bytes() == b"jpeg"
    assert (rig.folder / "files" / "abc_x").read_bytes() == b"content\n"
    assert (rig.folder / "logs" / "77.bson").read_bytes() == b"\0\1\2"
    assert rig.files() == [
        {"path": "shots/0001.jpg", "filepath": None, "pids": [], "size": 4},
        {"path": "files/abc_x", "filepath": "/tmp/x y", "pids": [12, 34], "size": 8},
        {"path": "logs/trace.strace", "filepath": None, "pids": [], "size": 17},
    ]
    assert (rig.session.files, rig.session.errors) == (4, [])


HOSTILE = [
    b"NONESUCH\nx",
    b"FILE 3\nfiles/a\nx",
    b"BSON\nx",
    b"BSON 0\nx",
    b"BSON 99999999999\nx",
    b"BSON ../x\nx",
    b"FILE\n../../x\nx",
    b"FILE\nfiles/../x\nx",
    b"FILE\nfiles/a/b\nx",
    b"FILE\nfiles/\nx",
    b"FILE\nfiles\nx",
    b"FILE\n/etc/cron.d/x\nx",
    b"FILE\nreports/report.json\nx",
    b"FILE\nanalysis.log\nx",
    b"FILE\nfiles/.hidden\nx",
    b"FILE\nfiles/a:b\nx",
    b"FILE\nfiles/a\\b\nx",
    b"FILE\nfiles/a\0b\nx",
    b"FILE\nfiles/a\x1b[2J\nx",
    b"FILE\nfiles/\xff\nx",
    b"FILE\nfiles/" + b"a" * 300 + b"\nx",
    b"FILE\nlogs/x.sh\nx",
    b"FILE\nlogs/1.bson\nx",
    b"FILE 2\nfiles/a\n/x\nnot numbers\nx",
    b"FILE 2\nfiles/a\n\xff\n1\nx",
    b"FILE\nfiles/" + b"a" * 9000,
    b"A" * 200_000,
    b"FILE\nfiles/a",
]


@pytest.mark.parametrize("data", HOSTILE)
async def test_what_is_not_of_the_protocol_leaves_no_file(rig: Rig, data: bytes) -> None:
    before = sorted(p.relative_to(rig.folder.parent) for p in rig.folder.parent.rglob("*"))
    await rig.send(data)
    after = sorted(p.relative_to(rig.folder.parent) for p in rig.folder.parent.rglob("*"))
    assert after == before
    assert len(rig.session.errors) == 1


async def test_a_link_in_the_way_is_not_followed(rig: Rig, tmp_path: Path) -> None:
    (rig.folder / "files" / "link").symlink_to(tmp_path / "outside")
    await rig.send(b"FILE\nfiles/link\nx")
    (rig.folder / "buffer").rmdir()
    (rig.folder / "buffer").symlink_to(tmp_path)
    await rig.send(b"FILE\nbuffer/outside\nx")
    assert not (tmp_path / "outside").exists()


async def test_a_name_is_taken_once(rig: Rig) -> None:
    await rig.send(b"FILE\nfiles/a\nfirst")
    await rig.send(b"FILE\nfiles/a\nsecond")
    assert (rig.folder / "files" / "a").read_bytes() == b"first"
    assert rig.session.errors == ["Result server: files/a again"]


async def test_a_file_is_cut_and_marked(rig: Rig) -> None:
    await rig.send(b"FILE\nfiles/big\n" + b"x" * 500_000)
    assert (rig.folder / "files" / "big").stat().st_size == 100_000
    assert rig.files()[0]["truncated"] is True
    assert rig.session.errors == ["Result server: files/big was cut after 100000 bytes"]


async def test_all_files_together_are_bounded(rig: Rig) -> None:
    for number in range(4):
        await rig.send(b"FILE\nfiles/%d\n" % number + b"x" * 90_000)
    assert sum(p.stat().st_size for p in (rig.folder / "files").iterdir()) == 250_000


async def test_files_are_counted(rig: Rig) -> None:
    for number in range(LIMITS.max_files + 5):
        await rig.send(b"FILE\nfiles/%d\n" % number)
    assert len(list((rig.folder / "files").iterdir())) == LIMITS.max_files
    assert len(rig.session.errors) == 5


async def test_connections_are_capped_and_closed_at_the_end(rig: Rig) -> None:
    writers = [await rig.connect() for _ in range(LIMITS.max_connections)]
    for number, writer in enumerate(writers):
        writer.write(b"FILE\nfiles/%d\nhalf" % number)
        await writer.drain()
    late = await rig.connect()
    assert await rig.reader.read() == b"", "the ninth is hung up on"
    late.close()
    assert "more than 8 connections" in rig.session.errors[0]
    while len(list((rig.folder / "files").iterdir())) < 8 or rig.session.bytes_received < 32:
        await asyncio.sleep(0)
    await rig.session.close()
    assert rig.session.connections == 0
    assert len(rig.files()) == 8, "what had come is recorded"
    for writer in writers:
        writer.close()


async def test_strangers_are_hung_up_on(rig: Rig) -> None:
    writer = await rig.connect("127.0.0.2")
    assert await rig.reader.read() == b""
    writer.close()
    assert (rig.session.files, rig.session.errors) == (0, [])


async def test_fifty_uploads_at_once_arrive_whole(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    server = ResultServer(ResultServerSection())
    await server.open([("127.0.0.1", 0)])
    contents = {n: os.urandom(200_000) for n in range(50)}

    async def send(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports[0])
        writer.write(b"FILE\nfiles/%d\n" % number + contents[number])
        writer.write_eof()
        await reader.read()
        writer.close()

    async with server.session(1, tmp_path, ip="127.0.0.1") as session:
        await asyncio.gather(*(send(number) for number in contents))
        assert await session.wait_idle(5)
    await server.close()
    for number, content in contents.items():
        kept = (tmp_path / "files" / str(number)).read_bytes()
        assert hashlib.sha256(kept).digest() == hashlib.sha256(content).digest()


async def test_a_guest_with_a_socket_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "results"
    path.write_bytes(b"stale")
    server = ResultServer(LIMITS)
    async with server.session(1, tmp_path, socket=path) as session:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"FILE\nfiles/a\nx")
        writer.write_eof()
        await reader.read()
        writer.close()
        assert await session.wait_idle(5)
    await server.close()
    assert not path.exists()
    assert (tmp_path / "files" / "a").read_bytes() == b"x"


async def test_a_taken_port_is_said(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        await ResultServer(LIMITS).open([("127.0.0.1", rig.server.ports[0])])


@given(st.binary(max_size=200))
def test_any_line_is_parsed_or_refused(line: bytes) -> None:
    for parse in (parse_command, parse_destination, parse_pids):
        try:
            result = parse(line)
        except Refused:
            continue
        if parse is parse_destination:
            folder, name = str(result).split("/")
            assert folder in FOLDERS | {"logs"}
            assert name not in ("", ".", "..")
