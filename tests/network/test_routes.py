"""Where each route leads, and many guests by several of them at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.network.rooter.client import RooterClient
from netkit import BRIDGE, GATEWAY, PROVIDER, ROUTING, UPLINK_ADDRESS, WEB, Lab, Start, guest_ip
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
ANSWERER = """
import http.server, socket, struct, sys, threading
name, address, web, dns = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = name.encode()
        if name == "tor":
            original = self.connection.getsockopt(socket.SOL_IP, 80, 16)  # SO_ORIGINAL_DST
            port, there = struct.unpack("!2xH4s8x", original)
            body = f"{name} for {socket.inet_ntoa(there)}:{port}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind((address, dns))
def answer():
    while True:
        data, who = udp.recvfrom(2048)
        udp.sendto(f"{name} heard ".encode() + data, who)
threading.Thread(target=answer, daemon=True).start()
server = http.server.ThreadingHTTPServer((address, web), Handler)
print("ready", flush=True)
server.serve_forever()
"""
"""Plays InetSim, or a Tor: what was addressed to others comes to it."""
ASK = """
import socket, sys
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.settimeout(2)
udp.sendto(b"question", (sys.argv[1], int(sys.argv[2])))
try:
    print(udp.recv(2048).decode())
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


def page(lab: Lab, guest: str, address: str) -> str:
    """What a guest gets from http://address/; empty: nothing."""
    curl = ["curl", "-s", "-m", "2", f"http://{address}/"]
    done = subprocess.run([*lab.inside(guest), *curl], capture_output=True, text=True)
    return done.stdout


def asked(lab: Lab, guest: str, address: str, port: int = 53) -> str:
    """What a guest is answered by UDP."""
    return lab.run(guest, sys.executable, "-c", ASK, address, str(port)).strip()


async def test_inetsim_gets_whatever_a_guest_sends(lab: Lab, client: RooterClient) -> None:
    guest = lab.guest(1)
    lab.python("provider", ANSWERER, "inetsim", PROVIDER, "8080", "53")
    await client.enable(guest_ip(1), BRIDGE, "inetsim")
    with lab.capture("host", "uplink", "ip") as uplink:
        assert page(lab, guest, "198.18.7.7") == "inetsim"
        assert (
            asked(lab, guest, "8.8.8.8") == asked(lab, guest, GATEWAY) == "inetsim heard question"
        )
        assert not [line for line in uplink() if "IP " in line]


async def test_tor_gets_tcp_and_names_and_the_rest_goes_nowhere(
    lab: Lab, client: RooterClient
) -> None:
    guest, other = lab.guest(1), lab.guest(2)
    lab.python("host", ANSWERER, "tor", GATEWAY, "9040", "5353")
    await client.enable(guest_ip(1), BRIDGE, "tor")
    with lab.capture("host", "uplink", "ip") as uplink:
        assert page(lab, guest, "198.18.7.7") == "tor for 198.18.7.7:80"
        assert asked(lab, guest, "8.8.8.8") == "tor heard question"
        assert asked(lab, guest, WEB, 4444) == "nothing"
        assert page(lab, guest, f"{GATEWAY}:9040") == "", "its ports are for what was turned there"
        assert page(lab, other, "198.18.7.7") == "", "another has no such route"
        assert not [line for line in uplink() if "IP " in line]


async def test_names_are_asked_through_the_route(lab: Lab, client: RooterClient) -> None:
    guest = lab.guest(1)
    assert asked(lab, guest, GATEWAY) == "nothing"
    await client.enable(guest_ip(1), BRIDGE, "internet")
    assert asked(lab, guest, GATEWAY) == f"question{UPLINK_ADDRESS}", "by [routing] dns"


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
