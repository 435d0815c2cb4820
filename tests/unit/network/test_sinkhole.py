"""The sinkhole answers guests over the network and over sockets, whatever they send."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.network import Sinkhole
from cuckoo_api.network import sinkhole as module
from cuckoo_api.network.web import Request, parse_head, respond

QUERY = bytes(dpkt.dns.DNS(id=7, qd=[dpkt.dns.DNS.Q(name="updates.demo.test")]))
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def sinkhole() -> AsyncIterator[Sinkhole]:
    sinkhole = Sinkhole()
    await sinkhole.open("127.0.0.1", 0, 0)
    yield sinkhole
    await sinkhole.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The address that the sinkhole gives for a name."""
    writer.write(struct.pack(">H", len(QUERY)) + QUERY)
    (length,) = struct.unpack(">H", await reader.readexactly(2))
    return socket.inet_ntoa(dpkt.dns.DNS(await reader.readexactly(length)).an[0].ip)


async def fetch(streams: Streams, *parts: bytes) -> bytes:
    """All that comes back until the sinkhole hangs up."""
    reader, writer = streams
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_names_over_udp(sinkhole: Sinkhole) -> None:
    loop = asyncio.get_running_loop()
    where = ("127.0.0.1", sinkhole.ports[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        for garbage in (b"garbage", b"\xff" * 1400, b""):
            await loop.sock_sendto(udp, garbage, where)
        await loop.sock_sendto(udp, QUERY, where)
        reply = dpkt.dns.DNS(await asyncio.wait_for(loop.sock_recv(udp, 512), 5))
    assert [socket.inet_ntoa(record.ip) for record in reply.an] == ["127.0.0.1"]


async def test_names_over_tcp(sinkhole: Sinkhole) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.ports[0])
    assert [await ask(reader, writer) for _ in range(3)] == ["127.0.0.1"] * 3
    writer.close()


@pytest.mark.parametrize("data", [b"\0", b"\xff\xff" + b"x" * 70_000, b"\0\7garbage", b"\0\0"])
async def test_what_is_no_dns_is_hung_up_on(sinkhole: Sinkhole, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.ports[0])
    writer.write(data)
    writer.write_eof()
    assert await fetch((reader, writer)) == b""
    reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.ports[0])
    assert await ask(reader, writer), "others are served"
    writer.close()


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "text/html"),
        (b"GET /a.php?x=a.exe HTTP/1.1\r\n\r\n", "text/html"),
        (b"GET http://a.test/b/stage2.EXE HTTP/1.1\r\n\r\n", "application/octet-stream"),
        (b"POST /gate HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody", "text/html"),
        (b"GET /bare-newlines\n\n", "text/html"),
        (b"\x16\x03\x01 what is that\r\n\r\n", "text/html"),
    ],
)
async def test_whatever_is_asked_for_is_there(
    sinkhole: Sinkhole, request_: bytes, kind: str
) -> None:
    page = await fetch(await asyncio.open_connection("127.0.0.1", sinkhole.ports[1]), request_)
    head, _, body = page.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"\r\nContent-Type: {kind}\r\n".encode() in head
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    assert body.endswith(b"</html>\n")


async def test_head_has_no_body(sinkhole: Sinkhole) -> None:
    streams = await asyncio.open_connection("127.0.0.1", sinkhole.ports[1])
    page = await fetch(streams, b"HEAD /a HTTP/1.1\r\n\r\n")
    assert page.endswith(b"\r\n\r\n")
    assert b"\r\nContent-Length: 8" in page


async def test_a_client_that_waits_is_told_to_go_on(sinkhole: Sinkhole) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.ports[1])
    writer.write(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b" 200 OK\r\n" in await fetch((reader, writer), b"x" * 100_000)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"y" * 50_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000,
        b"\r\n" * 20_000,
    ],
)
async def test_a_header_is_bounded(sinkhole: Sinkhole, data: bytes) -> None:
    streams = await asyncio.open_connection("127.0.0.1", sinkhole.ports[1])
    assert await fetch(streams, data) == b""


@pytest.mark.parametrize("length", [b"9" * 5_000, b"-1", b"0x10", b"1e9", "٣".encode(), b""])
async def test_a_length_that_is_none_is_passed_over(sinkhole: Sinkhole, length: bytes) -> None:
    streams = await asyncio.open_connection("127.0.0.1", sinkhole.ports[1])
    page = await fetch(streams, b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n")
    assert page.startswith(b"HTTP/1.1 200 OK\r\n")


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5))
def test_no_request_is_too_strange(lines: list[bytes]) -> None:
    request = parse_head(lines)
    assert 0 <= request.length < 10**18
    assert respond(request).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_request_is_understood() -> None:
    lines = [b"POST /a/b.Dat?c=d.html#e HTTP/1.1\r\n", b"content-LENGTH : 12\r\n"]
    assert parse_head(lines) == Request("POST", "dat", 12, waits=False)


@pytest.mark.parametrize("port", [0, 1])
async def test_an_idle_guest_is_hung_up_on(
    sinkhole: Sinkhole, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    streams = await asyncio.open_connection("127.0.0.1", sinkhole.ports[port])
    assert await asyncio.wait_for(fetch(streams, b"G"), 5) == b""


async def test_one_guest_does_not_shut_out_another(sinkhole: Sinkhole) -> None:
    greedy = [
        await asyncio.open_connection("127.0.0.1", sinkhole.ports[1], local_addr=("127.0.0.2", 0))
        for _ in range(module.MAX_PER_GUEST + 1)
    ]
    assert await greedy[-1][0].read() == b"", "one too many"
    page = await fetch(
        await asyncio.open_connection("127.0.0.1", sinkhole.ports[1]), b"GET / HTTP/1.1\r\n\r\n"
    )
    assert page.startswith(b"HTTP/1.1 200 OK\r\n")
    for _, writer in greedy:
        writer.close()


async def test_several_addresses_each_lead_to_themselves() -> None:
    sinkhole = Sinkhole()
    await sinkhole.open("127.0.0.1", 0, 0)
    port = sinkhole.ports[0]
    await sinkhole.open("127.0.0.3", port, 0)
    for ip in ("127.0.0.1", "127.0.0.3"):
        reader, writer = await asyncio.open_connection(ip, port)
        assert await ask(reader, writer) == ip
        writer.close()
    await sinkhole.close()


async def test_a_taken_port_is_said(sinkhole: Sinkhole) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        await Sinkhole().open("127.0.0.1", sinkhole.ports[0], 0)


async def test_closing_hangs_up(sinkhole: Sinkhole) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.ports[0])
    assert await ask(reader, writer)
    await sinkhole.close()
    assert await fetch((reader, writer)) == b""


async def test_a_guest_s_own_sockets(tmp_path: Path) -> None:
    private = tmp_path / "guest"
    private.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(private, 12345, 12345)  # as where each QEMU has a user of its own
    sockets = {"dns": private / "dns", "http": private / "http", "results": private / "results"}
    sockets["dns"].write_bytes(b"stale")
    async with Sinkhole().session(sockets, "10.0.2.2"):
        assert sorted(path.name for path in private.iterdir()) == ["dns", "http"]
        assert {path.stat().st_uid for path in private.iterdir()} == {private.stat().st_uid}
        names = await asyncio.open_unix_connection(sockets["dns"])
        assert [await ask(*names), await ask(*names)] == ["10.0.2.2", "10.0.2.2"]
        page = await fetch(
            await asyncio.open_unix_connection(sockets["http"]), b"GET /a HTTP/1.0\r\n\r\n"
        )
        assert page.endswith(b"</html>\n")
    assert list(private.iterdir()) == []
    assert await fetch(names) == b"", "hung up on at the end"


async def test_a_guest_on_a_real_network_has_no_sockets(tmp_path: Path) -> None:
    async with Sinkhole().session({}, "192.0.2.1"):
        assert list(tmp_path.iterdir()) == []
