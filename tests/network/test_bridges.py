"""Bridges and taps that the rooter makes: a guest's frames as they are on the wire.

The test is the guest: what it writes to its tap's descriptor comes out of the guest's network card.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import dpkt
import pytest

from cuckoo_api.machinery import BackendUnavailable
from cuckoo_api.network.rooter.bridges import mac_of
from cuckoo_api.network.rooter.client import RooterClient
from cuckoo_api.network.rooter.commands import Service
from cuckoo_api.network.rooter.taps import RooterTap, RooterTaps
from netkit import UPLINK_ADDRESS, WEB, Lab, Start, lines_with, run_rooter, until

MADE, HOST = "madebr", "192.168.57.1"
ONE, TWO = "192.168.57.11", "192.168.57.12"
MACS = {ONE: "52:54:00:00:57:0b", TWO: "52:54:00:00:57:0c"}
BROADCAST = "ff:ff:ff:ff:ff:ff"
ROUTING = f"""
[routing]
internet = uplink
[rooter]
user = nobody
bridges = {MADE}:{HOST}/24
"""


@pytest.fixture
def cwd(cwd: Path) -> Path:
    (cwd / "conf" / "routing.conf").write_text(ROUTING)
    return cwd


@pytest.fixture
def taps(cwd: Path) -> RooterTaps:
    return RooterTaps(cwd / "rooter.sock", {MADE: IPv4Interface(f"{HOST}/24")})


@pytest.fixture
async def client(cwd: Path) -> AsyncIterator[RooterClient]:
    made = RooterClient(cwd / "rooter.sock")
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def plugged(taps: RooterTaps, guest: str) -> AsyncIterator[RooterTap]:
    """A guest on the bridge, until this ends."""
    tap = await taps.plug(MADE, guest, MACS[guest])
    os.set_blocking(tap.descriptor, False)
    try:
        yield tap
    finally:
        os.close(tap.descriptor)
        await tap.unplug()


def links(lab: Lab) -> dict[str, Any]:
    found = json.loads(lab.run("host", "ip", "-json", "-details", "address"))
    return {link["ifname"]: link for link in found}


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(source: str, kind: int, content: bytes, target: str = BROADCAST) -> bytes:
    return mac(target) + mac(source) + kind.to_bytes(2, "big") + bytes(content)


def datagram(source: str, target: str, port: int, payload: bytes) -> bytes:
    udp = dpkt.udp.UDP(sport=5353, dport=port, data=payload)
    udp.ulen = len(udp)
    packet = dpkt.ip.IP(
        src=socket.inet_aton(source), dst=socket.inet_aton(target), p=17, ttl=64, data=udp
    )
    packet.len = len(packet)
    return bytes(packet)


def arp(own: str, ip: str, target: str, *, op: int = dpkt.arp.ARP_OP_REPLY) -> bytes:
    return bytes(
        dpkt.arp.ARP(
            op=op,
            sha=mac(own),
            spa=socket.inet_aton(ip),
            tha=mac(BROADCAST),
            tpa=socket.inet_aton(target),
        )
    )


def forged() -> dict[str, bytes]:
    """A frame for each lie that the first guest may tell; its name is in it."""
    own, other = MACS[ONE], MACS[TWO]
    six = dpkt.ip6.IP6(
        src=socket.inet_pton(socket.AF_INET6, "fe80::1"),
        dst=socket.inet_pton(socket.AF_INET6, "ff02::1"),
        nxt=59, plen=7, hlim=255, data=b"as-IPv6",
    )  # fmt: skip
    lie = datagram(TWO, HOST, 2042, b"in-a-vlan")
    return {
        "other-mac": frame(other, 0x0800, datagram(ONE, HOST, 2042, b"other-mac")),
        "bridge-mac": frame(mac_of(MADE), 0x0800, datagram(ONE, HOST, 2042, b"bridge-mac")),
        "other-ip": frame(own, 0x0800, datagram(TWO, HOST, 2042, b"other-ip")),
        "host-s-ip": frame(own, 0x0800, datagram(HOST, TWO, 2042, b"host-s-ip")),
        "host-s-arp": frame(own, 0x0806, arp(own, HOST, TWO) + b"host-s-arp"),
        "arp-of-other-mac": frame(own, 0x0806, arp(other, ONE, HOST) + b"arp-of-other-mac"),
        "as-IPv6": frame(own, 0x86DD, bytes(six)),
        "in-a-vlan": frame(own, 0x8100, b"\x00\x05\x08\x00" + lie),
        "odd-protocol": frame(own, 0x88B5, b"odd-protocol" * 5),
    }


async def read(tap: RooterTap, word: bytes, answer: str = "") -> list[bytes]:
    """What the guest sees, up to the word; with ``answer`` it tells others its address."""
    seen: list[bytes] = []
    async with asyncio.timeout(10):
        while not seen or word not in seen[-1]:
            try:
                seen.append(os.read(tap.descriptor, 2000))
            except BlockingIOError:
                await asyncio.sleep(0.005)
                continue
            if answer and seen[-1][12:14] == b"\x08\x06":
                os.write(
                    tap.descriptor, frame(MACS[answer], 0x0806, arp(MACS[answer], answer, HOST))
                )
    return seen


LISTENER = """
import socket, sys
service, other = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
service.bind((sys.argv[1], 2042))
other.bind((sys.argv[1], 2043))
print("ready", flush=True)
print(service.recv(99), flush=True)
other.setblocking(False)
try:
    print(other.recv(99), flush=True)
except BlockingIOError:
    print("nothing", flush=True)
"""


async def test_a_guest_speaks_as_itself_only_and_to_its_host_only(
    lab: Lab, start_rooter: Start, taps: RooterTaps, client: RooterClient
) -> None:
    start_rooter()
    bridge = links(lab)[MADE]
    assert (bridge["address"], "UP" in bridge["flags"]) == (mac_of(MADE), True)
    assert [one["local"] for one in bridge["addr_info"]] == [HOST], "and no IPv6"
    await client.guard(MADE, [Service("udp", HOST, 2042)])
    async with plugged(taps, ONE) as one, plugged(taps, TWO) as two:
        there = links(lab)[one.name]
        assert there["addr_info"] == []
        assert there["linkinfo"]["info_slave_data"]["isolated"]
        own, toward = MACS[ONE], mac_of(MADE)
        lies = forged()
        to_two = frame(own, 0x0800, datagram(ONE, TWO, 9, b"to-two"), MACS[TWO])
        honest = frame(own, 0x0800, datagram(ONE, HOST, 2042, b"honest"), toward)
        shut = frame(own, 0x0800, datagram(ONE, HOST, 2043, b"another-port"), toward)
        listener = lab.python("host", LISTENER, HOST)
        assert listener.stdout is not None
        with lab.capture("host", one.name) as sent, lab.capture("host", MADE, "-p") as came:
            # it makes itself known, else what is for it is for everybody
            os.write(two.descriptor, frame(MACS[TWO], 0x0806, arp(MACS[TWO], TWO, HOST)))
            for each in (*lies.values(), to_two, shut, honest):
                os.write(one.descriptor, each)
            until(lambda: lines_with(sent(), "honest"), "what it sent is on its wire")
            until(lambda: lines_with(came(), "honest"), "what came in")
            assert [name for name in (*lies, "to-two") if not lines_with(sent(), name)] == []
            assert [name for name in (*lies, "to-two") if lines_with(came(), name)] == []
        assert listener.stdout.readline() == b"b'honest'\n"
        assert listener.stdout.readline() == b"nothing\n", "on a port that is no service"
        for guest in (ONE, TWO):
            lab.run("host", "ip", "neigh", "replace", guest, "lladdr", MACS[guest], "dev", MADE)
        # the bridge does not know where they are, and leads what is for them to all
        lab.run("host", "ip", "link", "set", MADE, "type", "bridge", "fdb_flush")
        for guest in (TWO, ONE):
            lab.run("host", "bash", "-c", f"echo for-{guest}- > /dev/udp/{guest}/9")
        heard = b"".join(await read(two, f"for-{TWO}-".encode()))
        assert [name for name in (*lies, "to-two", "honest") if name.encode() in heard] == []
        heard = b"".join(await read(one, f"for-{ONE}-".encode()))
        assert f"for-{TWO}-".encode() not in heard


async def test_a_guest_that_is_plugged_in_has_its_route_until_it_is_not(
    lab: Lab, start_rooter: Start, taps: RooterTaps, client: RooterClient
) -> None:
    start_rooter()
    ask = frame(MACS[ONE], 0x0800, datagram(ONE, WEB, 53, b"question"), mac_of(MADE))
    with lab.capture("host", "uplink", "ip") as uplink:
        async with plugged(taps, ONE) as tap:
            await client.enable(ONE, MADE, "internet")
            os.write(tap.descriptor, ask)
            await read(tap, f"question{UPLINK_ADDRESS}".encode(), answer=ONE)
        assert ONE not in lab.run("host", "nft", "list", "ruleset"), "the route has gone with it"
        until(lambda: lines_with(uplink(), "question"), "it was on the wire")
        before = len(lines_with(uplink(), "question"))
        async with plugged(taps, ONE) as tap:
            with lab.capture("host", MADE) as came:
                os.write(tap.descriptor, ask)
                until(lambda: lines_with(came(), "question"), "it came")
        assert len(lines_with(uplink(), "question")) == before


HOLDER = """
import asyncio, sys
from ipaddress import IPv4Interface
from pathlib import Path
from cuckoo_api.network.rooter.taps import RooterTaps
async def main(sock, *guest):
    tap = await RooterTaps(Path(sock), {}).plug(*guest)
    print(tap.name, flush=True)
    await asyncio.sleep(100)
asyncio.run(main(*sys.argv[1:]))
"""
STRANGER = """
import os, socket, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
os.setgroups([])
os.setuid(12345)
connection = socket.socket(socket.AF_UNIX)
connection.connect(f"/proc/self/fd/{folder}/rooter.sock")
try:
    connection.sendall(sys.argv[2].encode() + b"\\n")
except BrokenPipeError:
    pass
print(*socket.recv_fds(connection, 1000, 9)[:2])
"""


async def test_who_dies_takes_its_taps_along_and_a_stranger_has_none(
    lab: Lab, cwd: Path, start_rooter: Start, taps: RooterTaps
) -> None:
    rooter = start_rooter()
    words = [str(cwd / "rooter.sock"), MADE, ONE, MACS[ONE]]
    holder = lab.spawn("host", sys.executable, "-c", HOLDER, *words)
    assert holder.stdout is not None
    name = holder.stdout.readline().decode().strip()
    assert name in links(lab)
    with pytest.raises(BackendUnavailable, match="another client's"):
        await taps.plug(MADE, ONE, MACS[ONE])
    (cwd / "rooter.sock").chmod(0o666)
    plug = json.dumps({"do": "plug", "interface": MADE, "guest": TWO, "mac": MACS[TWO]})
    said = lab.run("host", sys.executable, "-c", STRANGER, str(cwd), plug)
    assert "12345 may not ask the rooter" in said
    assert said.endswith("[]\n")
    holder.kill()
    until(lambda: name not in links(lab), "its tap goes")
    until(lambda: f'"{name}"' not in lab.run("host", "nft", "list", "ruleset"), "its rules")

    [pid] = lab.pids("host", "\0rooter\0")
    held = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [path for path in held if "tun" in path], "it keeps no tap open"
    tap = await taps.plug(MADE, ONE, MACS[ONE])
    os.kill(pid, signal.SIGKILL)
    rooter.wait()
    shut = frame(MACS[ONE], 0x0800, datagram(ONE, WEB, 53, b"marked"), mac_of(MADE))
    with lab.capture("host", MADE) as came, lab.capture("host", "uplink", "ip") as uplink:
        os.write(tap.descriptor, shut)  # it is there still, and shut
        until(lambda: lines_with(came(), "marked"), "it came")
        assert not lines_with(uplink(), "marked")
    second = start_rooter()
    assert tap.name not in links(lab)
    with pytest.raises(OSError, match="bad state"):
        os.write(tap.descriptor, shut)
    os.close(tap.descriptor)
    await tap.unplug()
    async with plugged(taps, ONE):
        second.terminate()
        assert second.wait(10) == 0
        assert not {MADE, tap.name} & set(links(lab))
    [route] = json.loads(lab.run("host", "ip", "-json", "route", "show", "type", "unreachable"))
    assert (route["dst"], route["metric"]) == ("192.168.57.0/24", 4096)


def test_a_bridge_of_somebody_else_s_is_left_alone(lab: Lab, cwd: Path) -> None:
    lab.run("host", "ip", "link", "add", MADE, "type", "bridge")
    log = cwd / "rooter.log"
    with pytest.raises(AssertionError, match=f"there is a {MADE} that is not the rooter's"):
        run_rooter(lab, cwd, log, "--socket", str(cwd / "rooter.sock"))
    assert MADE in links(lab)
