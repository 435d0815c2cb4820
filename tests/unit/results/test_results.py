"""What guests send is kept whole; what is not of the protocol leaves nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from resultskit import GUEST, LIMITS, Rig, deliver, make_folder, running, until

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.results import ResultServer
from cuckoo_api.settings import ResultServerSection

pytestmark = pytest.mark.slow


async def test_a_log_is_taken_once(rig: Rig) -> None:
    await rig.send(b"LOG\nfirst line\nsecond \xff line\n")
    assert rig.session.log_closed.is_set()
    await rig.send(b"LOG\nanother\n")
    assert rig.read("analysis.log") == b"first line\nsecond \xff line\n"
    assert rig.session.errors == ["Result server: a second log"]


async def test_the_end_of_the_log_is_an_event(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"LOG\nline\n")
    await until(lambda: rig.session.bytes_received == 5)
    assert not rig.session.log_closed.is_set()
    writer.write_eof()
    await asyncio.wait_for(rig.session.log_closed.wait(), 5)
    assert await reader.read() == b""
    writer.close()


async def test_files_of_both_versions_and_bson(rig: Rig) -> None:
    await rig.send(b"FILE\nshots/0001.jpg\njpeg")
    await rig.send(b"FILE 2\nfiles/abc_x\n/tmp/x y\n12 34\ncontent\n")
    await rig.send(b"FILE 2\nmemory\\12-1.dmp\r\n\xff:\\x\r\n12\r\nmemory")
    await rig.send(b"FILE 2\nlogs/trace.strace\n\n\n1 2 execve() = 0\n")
    await rig.send(b"FILE\nbuffer/empty\n")
    await rig.send(b"BSON 77\n\0\1\2")
    assert rig.read("shots/0001.jpg") == b"jpeg"
    assert rig.read("files/abc_x") == b"content\n"
    assert rig.read("memory/12-1.dmp") == b"memory"
    assert rig.read("logs/77.bson") == b"\0\1\2"
    assert rig.listed() == [
        {"path": "shots/0001.jpg", "filepath": None, "pids": [], "size": 4},
        {"path": "files/abc_x", "filepath": "/tmp/x y", "pids": [12, 34], "size": 8},
        {"path": "memory/12-1.dmp", "filepath": "\\xff:\\x", "pids": [12], "size": 6},
        {"path": "logs/trace.strace", "filepath": None, "pids": [], "size": 17},
        {"path": "buffer/empty", "filepath": None, "pids": [], "size": 0},
    ]
    assert (rig.session.files, rig.session.errors) == (6, [])
    assert rig.session.bytes_received == 4 + 8 + 6 + 17 + 3


HOSTILE = [
    b"NONESUCH\nx",
    b"FILE 3\nfiles/a\nx",
    b"BSON\nx",
    b"BSON ../x\nx",
    b"FILE\n../../x\nx",
    b"FILE\nfiles/../x\nx",
    b"FILE\nfiles\\..\\..\\x\nx",
    b"FILE\n/etc/cron.d/x\nx",
    b"FILE\nreports/report.json\nx",
    b"FILE\nfiles/a:b\nx",
    b"FILE\nfiles/a\0b\nx",
    b"FILE\nfiles/\xff\nx",
    b"FILE\nlogs/x.sh\nx",
    b"FILE 2\nfiles/a\n/x\nnot numbers\nx",
    b"FILE 2\nfiles/a\n" + b"/x" * 4000 + b"\n1\nx",
    b"FILE\nfiles/" + b"a" * 9000,
    b"A" * 200_000,
    b"FILE\nfiles/a",
    b"FILE 2\nfiles/a\n/x\n",
]


@pytest.mark.parametrize("data", HOSTILE)
async def test_what_is_not_of_the_protocol_leaves_nothing(rig: Rig, data: bytes) -> None:
    before = rig.everything()
    await rig.send(data)
    assert rig.everything() == before
    assert len(rig.session.errors) <= 1
    assert rig.session.files == rig.session.bytes_received == 0
    await rig.send(b"FILE\nfiles/a\nstill served")
    assert rig.read("files/a") == b"still served"


async def test_a_refusal_says_why(rig: Rig) -> None:
    await rig.send(b"FILE\nreports/report.json\nx")
    assert rig.session.errors == ["Result server: no folder of results: 'reports/report.json'"]


async def test_a_link_in_the_way_is_not_followed(rig: Rig, tmp_path: Path) -> None:
    (rig.folder / "files" / "link").symlink_to(tmp_path / "outside")
    await rig.send(b"FILE\nfiles/link\nx")
    (rig.folder / "buffer").rmdir()
    (rig.folder / "buffer").symlink_to(tmp_path)
    await rig.send(b"FILE\nbuffer/outside\nx")
    assert not (tmp_path / "outside").exists()
    assert len(rig.session.errors) == 2
    assert rig.session.files == 0


async def test_a_name_is_taken_once(rig: Rig) -> None:
    await rig.send(b"FILE\nfiles/a\nfirst")
    await rig.send(b"FILE\nfiles/a\nsecond")
    assert rig.read("files/a") == b"first"
    assert rig.session.errors == ["Result server: files/a again"]


async def test_a_picture_takes_the_next_free_number(rig: Rig) -> None:
    """The host takes pictures as well, and calls them the same."""
    (rig.folder / "shots" / "0001.jpg").write_bytes(b"the host's")
    (rig.folder / "shots" / "0003.jpg").write_bytes(b"the host's")
    for content in (b"first", b"second"):
        await rig.send(b"FILE 2\nshots/0001.jpg\nC:\\shot.jpg\n\n" + content)
    assert rig.read("shots/0001.jpg") == rig.read("shots/0003.jpg") == b"the host's"
    assert rig.read("shots/0002.jpg") == b"first"
    assert rig.read("shots/0004.jpg") == b"second"
    assert [entry["path"] for entry in rig.listed()] == ["shots/0002.jpg", "shots/0004.jpg"]
    (rig.folder / "shots" / "9999.jpg").touch()
    await rig.send(b"FILE\nshots/9999.jpg\nlast")
    assert rig.session.errors == ["Result server: shots/9999.jpg again"]


async def test_fifty_uploads_at_once_arrive_whole(folder: Path) -> None:
    contents = {n: random.Random(n).randbytes(200_000 + n) for n in range(50)}
    async with running(folder, ResultServerSection()) as rig:
        lines = [b"FILE\nfiles/%d\n" % number for number in contents]
        uploads = map(rig.upload, map(bytes.__add__, lines, contents.values()))
        await asyncio.gather(*uploads)
        assert await rig.session.wait_idle(5)
        assert rig.session.errors == []
    kept = {n: hashlib.sha256(rig.read(f"files/{n}")).digest() for n in contents}
    assert kept == {n: hashlib.sha256(content).digest() for n, content in contents.items()}
    assert {entry["path"]: entry["size"] for entry in rig.listed()} == {
        f"files/{n}": len(content) for n, content in contents.items()
    }


async def test_what_was_sent_is_kept_when_the_guest_is_switched_off(folder: Path) -> None:
    content = b"x" * 90_000
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as undo:
        rig = await undo.enter_async_context(running(folder))
        # no end of stream, and no turn of the event loop in which the server could have read it
        guest = socket.create_connection(("127.0.0.1", rig.server.ports[0]))
        guest.sendall(b"FILE\nfiles/a\n" + content)
        began = loop.time()
    assert loop.time() - began < 1, "the guest is quiet: nobody waits for its end"
    guest.close()
    assert rig.read("files/a") == content
    assert rig.session.connections == 0
    assert rig.listed()[0]["size"] == len(content)


async def test_a_connection_that_was_not_taken_yet_is_waited_for(rig: Rig) -> None:
    with socket.create_connection(("127.0.0.1", rig.server.ports[0])) as guest:
        guest.sendall(b"FILE\nfiles/a\nlast words")
    assert await rig.session.wait_idle(5)
    assert rig.read("files/a") == b"last words"


async def test_a_guest_that_stays_connected_is_not_waited_for_long(rig: Rig) -> None:
    _, writer = await rig.connect()
    await until(lambda: rig.session.connections)
    assert not await rig.session.wait_idle(0.01)
    writer.close()


async def test_a_guest_that_goes_on_sending_is_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_api.results.server.LAST_WORDS", 0.1)
    async with running(folder) as rig:
        reader, writer = await rig.connect()
        writer.write(b"LOG\n")

        async def chatter() -> None:
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.01)  # a guest that takes its time, not a test that waits

        talking = asyncio.create_task(chatter())
        await until(lambda: rig.session.bytes_received)
    assert rig.session.connections == 0
    assert rig.session.log_closed.is_set()
    with pytest.raises(ConnectionError):
        while await reader.read(100):
            pass
        raise ConnectionResetError("hung up in order, which is as good")
    talking.cancel()
    writer.close()


async def test_half_a_file_is_kept_and_listed_at_the_end(rig: Rig) -> None:
    _, writer = await rig.connect()
    writer.write(b"FILE 2\nfiles/a\n/tmp/a\n1\nhalf")
    await until(lambda: rig.session.bytes_received == 4)
    await rig.session.close()
    assert rig.session.connections == 0
    assert rig.read("files/a") == b"half"
    assert [entry["size"] for entry in rig.listed()] == [4]
    writer.close()


async def test_strangers_are_hung_up_on(rig: Rig) -> None:
    for _ in range(3):
        await rig.upload(b"FILE\nfiles/a\nx", "127.0.0.2")
    assert rig.server.strangers == 3
    assert (rig.session.files, rig.session.errors) == (0, [])


async def test_each_guest_has_its_own_folder(rig: Rig, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "2")
    async with rig.server.session(2, other, ip="127.0.0.2") as session:
        await rig.send(b"FILE\nfiles/a\none")
        await rig.upload(b"FILE\nfiles/a\ntwo", "127.0.0.2")
        assert await session.wait_idle(5)
    assert (rig.read("files/a"), (other / "files" / "a").read_bytes()) == (b"one", b"two")


async def test_an_address_is_one_guest_s(rig: Rig, tmp_path: Path) -> None:
    for spelling in (GUEST, f"::ffff:{GUEST}"):
        with pytest.raises(ValueError, match="has a session already"):
            async with rig.server.session(2, tmp_path, ip=spelling):
                pass
    with pytest.raises(ValueError, match="without an address"):
        async with rig.server.session(2, tmp_path):
            pass
    await rig.send(b"FILE\nfiles/a\nx")
    assert rig.read("files/a") == b"x", "the first session is as it was"


async def test_an_address_is_free_again_afterwards(folder: Path, tmp_path: Path) -> None:
    server = ResultServer(LIMITS)
    for number in (1, 2):
        async with server.session(number, folder, ip="192.0.2.7"):
            pass
    await server.close()


async def test_a_guest_with_a_socket_of_its_own(folder: Path, tmp_path: Path) -> None:
    private = tmp_path / "guest"
    private.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(private, 12345, 12345)  # as where each QEMU has a user of its own
    path = private / "results"
    path.write_bytes(b"stale")
    server = ResultServer(LIMITS)
    async with server.session(1, folder, socket=path) as session:
        assert path.is_socket()
        assert path.stat().st_uid == private.stat().st_uid
        assert path.stat().st_mode & 0o022 == 0
        await deliver(*await asyncio.open_unix_connection(path), b"FILE\nfiles/a\nx")
        assert await session.wait_idle(5)
    await server.close()
    assert list(private.iterdir()) == []
    assert (folder / "files" / "a").read_bytes() == b"x"


async def test_closing_the_server_ends_every_session(folder: Path, tmp_path: Path) -> None:
    server = ResultServer(LIMITS)
    async with server.session(1, folder, socket=tmp_path / "results") as session:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "results")
        writer.write(b"LOG\nline\n")
        await until(lambda: session.bytes_received)
        await server.close()
        assert await reader.read() == b""
        writer.close()
    assert (folder / "analysis.log").read_bytes() == b"line\n"


async def test_a_taken_port_is_said(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        await ResultServer(LIMITS).open([("127.0.0.1", rig.server.ports[0])])
