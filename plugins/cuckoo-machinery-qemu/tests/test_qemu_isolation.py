"""What a hostile guest can reach: the listed services on its host, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import dpkt
import pytest
from qemukit import (
    ADDRESSES,
    DNS,
    GATEWAY,
    HTTP,
    RESULTS,
    Host,
    Lab,
    Sniffer,
    python_inside,
    reached,
    run,
    started,
)

from conftest import Make
from cuckoo_machinery_qemu.backend import QemuBackend

PRIVATE = 8090
"""A port on which the host listens, and which is no guest's business."""
ELSEWHERE = "203.0.113.1"
"""Another address of the host, in another network."""
BEYOND = "203.0.113.7"
"""A stranger in that network."""
BROADCAST = b"\xff" * 6


@pytest.fixture
def elsewhere(namespace: None) -> Iterator[str]:
    """A second network of a host that forwards packets; returns its interface."""
    run("ip", "link", "add", "cktother", "type", "bridge")
    run("ip", "address", "add", f"{ELSEWHERE}/24", "dev", "cktother")
    run("ip", "link", "set", "cktother", "up")
    run("ip", "neigh", "add", BEYOND, "lladdr", "02:00:00:00:00:07", "dev", "cktother")
    run("sysctl", "-q", "net.ipv4.ip_forward=1")
    yield "cktother"
    run("ip", "link", "delete", "cktother")


def here(way: str, ip: str, port: int) -> str:
    """What the host itself is answered there: the door is open."""
    kind = socket.SOCK_STREAM if way == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as talk:
        talk.settimeout(10)
        talk.connect((ip, port))
        talk.send(b"hello")
        if way == "tcp":
            talk.shutdown(socket.SHUT_WR)
        return talk.recv(100).decode()


@pytest.mark.parametrize("listed", [(RESULTS,), (RESULTS, DNS, HTTP)], ids=["results", "all"])
async def test_a_guest_reaches_the_listed_services_only(
    lab: Lab, make: Make, host: Host, elsewhere: str, listed: tuple
) -> None:
    backend = await make(services=listed)
    await host.serve(backend, RESULTS, DNS, HTTP)
    for ip in ("0.0.0.0", "127.0.0.1"):
        await host.tcp("private", ip, PRIVATE + (ip != "0.0.0.0"))
        await host.udp("private", ip, PRIVATE + (ip != "0.0.0.0"))
    await host.tcp("results elsewhere", ELSEWHERE, RESULTS.port)
    doors = [(s.protocol, GATEWAY, s.port) for s in (RESULTS, DNS, HTTP)]
    shut = [
        (way, ip, port)
        for way in ("tcp", "udp")
        for ip in (GATEWAY, ELSEWHERE)
        for port in (PRIVATE, PRIVATE + 1, 22, 53)
        if (way, ip, port) not in doors
    ]
    shut += [("tcp", ELSEWHERE, RESULTS.port), ("tcp", ADDRESSES["two"], 8000)]
    async with started(backend) as agent, started(backend, "two"):
        if lab.network == "bridge":  # else there is no such address to listen on
            for target in (*doors, ("tcp", GATEWAY, PRIVATE), ("udp", ELSEWHERE, PRIVATE)):
                assert await asyncio.to_thread(here, *target)
        host.heard.clear()
        answers = await reached(agent, *doors, *shut)
    assert answers == {f"{s.protocol} {GATEWAY} {s.port}": s.name for s in listed}
    assert host.heard == {s.name: b"hello" for s in listed}


# -- frames that no honest guest sends ------------------------------------------------------------

SEND = """
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind(("eth0", 0))
    for frame in given:
        wire.send(bytes.fromhex(frame))
"""


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def datagram(source: str, target: str, payload: bytes) -> dpkt.ip.IP:
    udp = dpkt.udp.UDP(sport=1, dport=RESULTS.port, data=payload)
    udp.ulen = len(udp)
    packet = dpkt.ip.IP(src=socket.inet_aton(source), dst=socket.inet_aton(target), p=17, data=udp)
    packet.len = len(packet)
    return packet


def frame(source: bytes, kind: int, content: bytes, target: bytes = BROADCAST) -> bytes:
    return target + source + kind.to_bytes(2, "big") + bytes(content)


def forged(own: bytes, other: bytes) -> dict[bytes, bytes]:
    """A frame for each lie; its name is in it."""
    one, two = ADDRESSES["one"], ADDRESSES["two"]
    arp = dpkt.arp.ARP(
        op=dpkt.arp.ARP_OP_REPLY,
        sha=own,
        spa=socket.inet_aton(GATEWAY),
        tha=BROADCAST,
        tpa=socket.inet_aton(two),
    )
    tag = b"\x00\x05\x08\x00"
    six = dpkt.ip6.IP6(
        src=socket.inet_pton(socket.AF_INET6, "fe80::1"),
        dst=socket.inet_pton(socket.AF_INET6, "ff02::1"),
        nxt=59,
        plen=7,
        hlim=255,
        data=b"as-IPv6",
    )
    return {
        b"other-mac": frame(other, 0x0800, datagram(one, GATEWAY, b"other-mac")),
        b"other-ip": frame(own, 0x0800, datagram(two, GATEWAY, b"other-ip")),
        b"host-s-ip": frame(own, 0x0800, datagram(GATEWAY, two, b"host-s-ip")),
        b"host-s-arp": frame(own, 0x0806, bytes(arp) + b"host-s-arp"),
        b"as-IPv6": frame(own, 0x86DD, bytes(six)),
        b"in-a-vlan": frame(own, 0x8100, tag + bytes(datagram(two, GATEWAY, b"in-a-vlan"))),
        b"by-priority": frame(
            own, 0x8100, b"\0\0\x08\0" + bytes(datagram(two, GATEWAY, b"by-priority"))
        ),
        b"odd-protocol": frame(own, 0x88B5, b"odd-protocol" * 5),
    }


@pytest.mark.parametrize("lab", ["bridge"], indirect=True)
async def test_a_guest_speaks_as_itself_only(backend: QemuBackend, lab: Lab) -> None:
    taps = {label: m.place.tap for label, m in backend._machines.items()}
    own, other = (mac(backend._machines[label].place.mac) for label in ADDRESSES)
    frames = forged(own, other)
    honest = frame(own, 0x0800, datagram(ADDRESSES["one"], GATEWAY, b"honest"))
    toward_two = frame(own, 0x0800, datagram(ADDRESSES["one"], ADDRESSES["two"], b"to-two"), other)
    async with started(backend) as agent, started(backend, "two"):
        with ExitStack() as stack:

            def sniff(interface: str) -> Sniffer:
                sniffer = Sniffer(interface)
                stack.callback(sniffer.close)
                return sniffer

            sent, arrived, neighbour = (sniff(i) for i in (taps["one"], "cktbr", taps["two"]))
            everything = [*frames.values(), toward_two, honest]
            await python_inside(agent, SEND, [bytes(one).hex() for one in everything])
            # what was sent is seen on the guest's own wire
            left = b"".join(await asyncio.to_thread(sent.until, b"honest"))
            assert [name for name in (*frames, b"to-two") if name not in left] == []
            # and at the host's end only the honest one
            came = b"".join(await asyncio.to_thread(arrived.until, b"honest"))
            assert [name for name in (*frames, b"to-two") if name in came] == []
            # the neighbour hears nothing of its kind, and still hears its host
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
                talk.sendto(b"from-the-host", (ADDRESSES["two"], 9))
            heard = b"".join(await asyncio.to_thread(neighbour.until, b"from-the-host"))
            assert [n for n in (*frames, b"to-two", b"honest") if n in heard] == []


@pytest.mark.parametrize("lab", ["bridge"], indirect=True)
async def test_nothing_is_forwarded_beyond_the_host(backend: QemuBackend, elsewhere: str) -> None:
    async with started(backend) as agent:
        beyond = Sniffer(elsewhere)
        try:
            assert await reached(agent, ("tcp", BEYOND, 80), ("udp", BEYOND, 53)) == {}
            # the way itself is open: the host's own packet goes there
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
                talk.sendto(b"from-the-host", (BEYOND, 9))
            passed = await asyncio.to_thread(beyond.until, b"from-the-host")
        finally:
            beyond.close()
    source = socket.inet_aton(ADDRESSES["one"])
    assert [one for one in passed if source in one] == []


@pytest.mark.parametrize("lab", ["bridge"], indirect=True)
async def test_the_bridge_has_no_ipv6(backend: QemuBackend) -> None:
    async with started(backend):
        shown = run("ip", "-6", "address", "show", "dev", "cktbr")
        assert "inet6" not in shown
