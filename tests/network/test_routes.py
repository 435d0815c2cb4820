"""Where each route leads, and many guests by several of them at once."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cuckoo_api.network.rooter.client import RooterClient
from netkit import (
    BRIDGE,
    GATEWAY,
    PATIENCE,
    PROVIDER,
    ROUTING,
    UPLINK_ADDRESS,
    WEB,
    Lab,
    Start,
    guest_ip,
    until,
)
from torkit import PORTS, RELAYS, Tor
from tunnelkit import OPENVPN_EXIT, WIREGUARD_EXIT, OpenVpn, WireGuard, certificates

MORE = f"""
[inetsim]
enabled = yes
server = {PROVIDER}
ports = 80:8080
[tor]
enabled = yes
[vpn]
enabled = yes
vpns = vpn0, wg
[vpn0]
interface = tun0
[wg]
interface = {{wireguard}}
"""
GUESTS = 20
INETSIM = f"""
start_service dns
start_service http
service_bind_address {PROVIDER}
dns_default_ip 198.18.0.80
http_bind_port 8080
http_default_fakefile sample.html text/html
"""
QUESTION = "000701000001000000000000" + b"\x04evil\x07example".hex() + "0000010001"
"""For the address of evil.example, as DNS has it."""
ASK = """
import socket, sys
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.settimeout(float(sys.argv[4]))
udp.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[1], int(sys.argv[2])))
try:
    print(udp.recv(2048).hex())
except TimeoutError:
    print("nothing")
"""


@pytest.fixture
async def client(cwd: Path, start_rooter: Start, lab: Lab) -> AsyncIterator[RooterClient]:
    more = MORE.format(wireguard=f"wg{lab.tag}")
    (cwd / "conf" / "routing.conf").write_text(ROUTING + more)
    start_rooter()
    made = RooterClient(cwd / "rooter.sock")
    yield made
    await made.close()


def page(lab: Lab, guest: str, address: str, seconds: int = 2) -> str:
    """What a guest gets from http://address/; empty: nothing."""
    curl = ["curl", "-s", "-m", str(seconds), f"http://{address}/"]
    done = subprocess.run([*lab.inside(guest), *curl], capture_output=True, text=True)
    return done.stdout


def asked(lab: Lab, guest: str, address: str, port: int = 53, seconds: int = 2) -> str:
    """What a guest is answered by UDP, in hexadecimal."""
    words = (address, str(port), QUESTION, str(seconds))
    return lab.run(guest, sys.executable, "-c", ASK, *words).strip()


def told(answer: str) -> str:
    """The address at the end of DNS' answer."""
    assert answer.startswith(QUESTION[:4]), answer
    return str(IPv4Address(bytes.fromhex(answer)[-4:]))


@contextmanager
def inetsim(lab: Lab) -> Iterator[None]:
    """The real InetSim at the provider, from when it is there."""
    # its account may not enter pytest's own folders
    with TemporaryDirectory(prefix="inetsim-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for own in ("log", "report"):
            (folder / own).mkdir()
            shutil.chown(folder / own, "inetsim")
        (folder / "inetsim.conf").write_text(INETSIM)
        words = [f"--{own}-dir={folder / own}" for own in ("log", "report")]
        words += [f"--config={folder / 'inetsim.conf'}", f"--pidfile={folder / 'pid'}"]
        started = lab.spawn("provider", "inetsim", *words, log=folder / "said")
        log = folder / "log" / "main.log"
        until(lambda: log.exists() and "Simulation running" in log.read_text(), "InetSim", 20)
        yield
        started.terminate()
        started.wait(PATIENCE)


async def test_inetsim_gets_whatever_a_guest_sends(lab: Lab, client: RooterClient) -> None:
    guest = lab.guest(1)
    await client.enable(guest_ip(1), BRIDGE, "inetsim")
    with inetsim(lab), lab.capture("host", "uplink", "ip") as uplink:
        assert "INetSim default HTML page" in page(lab, guest, "198.18.7.7")
        for resolver in ("8.8.8.8", GATEWAY):
            assert told(asked(lab, guest, resolver)) == "198.18.0.80"
        assert not [line for line in uplink() if "IP " in line]


async def test_tor_gets_tcp_and_names_and_the_rest_goes_nowhere(
    lab: Lab, client: RooterClient, tmp_path: Path
) -> None:
    guest, other = lab.guest(1), lab.guest(2)
    await client.enable(guest_ip(1), BRIDGE, "tor")
    rest = f"ip and not (tcp and host {PROVIDER} and portrange {PORTS}-{PORTS + len(RELAYS)})"
    with lab.capture("host", "uplink", "ip") as uplink, lab.capture("host", "wan", rest) as wan:
        Tor(lab, tmp_path).start()
        assert page(lab, guest, WEB, 10) == OPENVPN_EXIT, "the web server sees an exit relay"
        assert told(asked(lab, guest, "8.8.8.8", seconds=10)) == WEB
        assert await asyncio.gather(
            asyncio.to_thread(asked, lab, guest, WEB, 4444),
            asyncio.to_thread(page, lab, guest, f"{GATEWAY}:9040"),
            asyncio.to_thread(page, lab, other, WEB),
        ) == ["nothing", "", ""], "its ports are for what was turned there, and for this guest"
        assert not [line for line in uplink() + wan() if "IP " in line]


async def test_names_are_asked_through_the_route(lab: Lab, client: RooterClient) -> None:
    guest = lab.guest(1)
    assert asked(lab, guest, GATEWAY) == "nothing"
    await client.enable(guest_ip(1), BRIDGE, "internet")
    heard = asked(lab, guest, GATEWAY)
    assert heard == QUESTION + UPLINK_ADDRESS.encode().hex(), "by [routing] dns"


async def test_twenty_guests_by_three_exits_at_once_each_keep_to_their_own(
    lab: Lab, client: RooterClient, tmp_path: Path
) -> None:
    certificates(tmp_path / "openvpn")
    for tunnel in (OpenVpn(lab, tmp_path / "openvpn"), WireGuard(lab, tmp_path)):
        tunnel.start_server()
        tunnel.start_client()
    exits = {"vpn0": OPENVPN_EXIT, "wg": WIREGUARD_EXIT, "internet": UPLINK_ADDRESS}
    guests = [lab.guest(number) for number in range(GUESTS)]

    async def analyse(number: int) -> list[tuple[str, str]]:
        seen = []
        for turn in range(3):
            route = list(exits)[(number + turn) % 3]
            await client.enable(guest_ip(number), BRIDGE, route)
            address = await asyncio.to_thread(page, lab, guests[number], WEB)
            await client.disable(guest_ip(number))
            seen.append((route, address))
        return seen

    found = await asyncio.gather(*(analyse(number) for number in range(GUESTS)))
    wrong = [one for seen in found for one in seen if one[1] != exits[one[0]]]
    assert wrong == []
    assert {len(seen) for seen in found} == {3}
    assert not [rule for rule in lab.rules() if rule.get("src", "").startswith("192.168.156.")]
    assert page(lab, guests[0], WEB) == ""
