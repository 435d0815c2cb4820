"""The sinkhole answers guests; a capture that cannot be made is a sentence, not a failure."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.machinery import Capability, WrongState
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.network import Sinkhole, capture
from cuckoo_api.network.dns import answer


def query(name: str = "updates.demo.test", kind: int = dpkt.dns.DNS_A) -> bytes:
    return bytes(dpkt.dns.DNS(id=7, qd=[dpkt.dns.DNS.Q(name=name, type=kind)]))


def test_every_name_leads_to_the_sinkhole() -> None:
    reply = dpkt.dns.DNS(answer(query(), "192.0.2.1"))
    assert (reply.id, reply.qr, reply.rcode) == (7, dpkt.dns.DNS_R, dpkt.dns.DNS_RCODE_NOERR)
    assert [q.name for q in reply.qd] == ["updates.demo.test"]
    assert [(a.name, socket.inet_ntoa(a.ip)) for a in reply.an] == [
        ("updates.demo.test", "192.0.2.1")
    ]


def test_other_types_have_no_answer() -> None:
    for kind in (dpkt.dns.DNS_AAAA, dpkt.dns.DNS_MX, dpkt.dns.DNS_TXT):
        reply = dpkt.dns.DNS(answer(query(kind=kind), "192.0.2.1"))
        assert (reply.rcode, reply.an) == (dpkt.dns.DNS_RCODE_NOERR, [])


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        query()[:-1],
        query()[:2] + b"\x80" + query()[3:],  # a response
        query()[:4] + b"\0\2" + query()[6:],  # two questions
        query()[:12] + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        query()[:12] + b"\x3f" + b"a" * 63,  # a name without an end
        query() + b"\0" * 600,
    ],
)
def test_what_is_no_question_is_dropped(packet: bytes) -> None:
    assert answer(packet, "192.0.2.1") is None


@given(st.binary(max_size=600))
def test_no_packet_is_too_strange(packet: bytes) -> None:
    reply = answer(packet, "192.0.2.1")
    assert reply is None or reply[:2] == packet[:2]


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(struct.pack(">H", len(query())) + query())
    (length,) = struct.unpack(">H", await reader.readexactly(2))
    return await reader.readexactly(length)


async def fetch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> bytes:
    writer.write(head)
    text = await reader.read()
    writer.close()
    return text


async def test_over_the_network() -> None:
    sinkhole = Sinkhole()
    await sinkhole.open("127.0.0.1", 0, 0)
    dns, http = sinkhole.ports
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        await loop.sock_sendto(udp, b"garbage", ("127.0.0.1", dns))
        await loop.sock_sendto(udp, query(), ("127.0.0.1", dns))
        assert dpkt.dns.DNS(await loop.sock_recv(udp, 512)).an[0].ip == b"\x7f\0\0\1"
    reader, writer = await asyncio.open_connection("127.0.0.1", dns)
    assert dpkt.dns.DNS(await ask(reader, writer)).an[0].ip == b"\x7f\0\0\1"
    writer.close()
    page = await fetch(
        *await asyncio.open_connection("127.0.0.1", http),
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
    )
    assert page.startswith(b"HTTP/1.1 200 OK\r\n")
    assert page.endswith(b"</html>\n")
    for hostile in (b"\0" * 100_000, b"GET / HTTP/1.1\r\nX: " + b"y" * 50_000 + b"\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", http)
        writer.write(hostile)
        with pytest.raises(ConnectionError):
            while await reader.read(100):
                pass
            raise ConnectionResetError("hung up in order, which is as good")
        writer.close()
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        await Sinkhole().open("127.0.0.1", dns, 0)
    await sinkhole.close()


async def test_over_a_guest_s_own_sockets(tmp_path: Path) -> None:
    sockets = {"dns": tmp_path / "dns", "http": tmp_path / "http", "results": tmp_path / "r"}
    sinkhole = Sinkhole()
    async with sinkhole.session(sockets, "10.0.2.2"):
        reader, writer = await asyncio.open_unix_connection(sockets["dns"])
        assert dpkt.dns.DNS(await ask(reader, writer)).an[0].ip == bytes((10, 0, 2, 2))
        assert await ask(reader, writer), "the connection stays"
        writer.close()
        page = await fetch(
            *await asyncio.open_unix_connection(sockets["http"]), b"HEAD / HTTP/1.0\r\n\r\n"
        )
        assert page.endswith(b"\r\n\r\n")
    assert list(tmp_path.iterdir()) == []


class Machine:
    """The part of a lease that a capture uses."""

    capabilities = Capability.CAPTURE

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.calls: list[str] = []

    async def start_capture(self, path: Path) -> None:
        self.calls.append(f"start {path.name}")
        if self.fails:
            raise WrongState("it is off")

    async def stop_capture(self) -> None:
        self.calls.append("stop")
        if self.fails:
            raise WrongState("it is off")


async def test_the_hypervisor_captures_where_it_can(tmp_path: Path) -> None:
    machine = Machine()
    async with capture(machine, tmp_path / "dump.pcap", "", "127.0.0.1") as errors:
        assert machine.calls == ["start dump.pcap"]
    assert (machine.calls[-1], errors) == ("stop", [])


async def test_an_analysis_goes_on_without_its_capture(tmp_path: Path) -> None:
    machine = Machine(fails=True)
    async with capture(machine, tmp_path / "dump.pcap", "", "127.0.0.1") as errors:
        assert errors == ["No capture of the network: it is off"]
    machine.capabilities = Capability.NONE
    for interface in ("", "nosuch0"):
        async with capture(machine, tmp_path / "dump.pcap", interface, "127.0.0.1") as errors:
            assert len(errors) == 1
            assert errors[0].startswith("No capture of the network: ")


async def test_tcpdump_captures_where_the_hypervisor_cannot(tmp_path: Path) -> None:
    machine = Machine()
    machine.capabilities = Capability.NONE
    sinkhole = Sinkhole()
    await sinkhole.open("127.0.0.1", 0, 0)
    path = tmp_path / "dump.pcap"
    async with capture(machine, path, "lo", "127.0.0.1") as errors:
        assert errors == []
        reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.ports[0])
        await ask(reader, writer)
        writer.close()
    await sinkhole.close()
    with path.open("rb") as file:
        packets = [bytes(packet) for _, packet in dpkt.pcap.Reader(file)]
    assert any(b"updates\x04demo\x04test" in packet for packet in packets)
