"""The rooter on a real kernel: what guests can and cannot do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.network.rooter.client import RooterClient, RooterRefused, RooterUnavailable
from cuckoo_api.network.rooter.commands import Service
from netkit import BRIDGE, GATEWAY, METADATA, UPLINK_ADDRESS, WEB, Lab, Start, guest_ip, until

pytestmark = pytest.mark.usefixtures("rooter")


@pytest.fixture
async def client(cwd: Path) -> AsyncIterator[RooterClient]:
    made = RooterClient(cwd / "rooter.sock")
    yield made
    await made.close()


async def test_a_guest_reaches_nothing_until_it_has_a_route(lab: Lab, client: RooterClient) -> None:
    guest, other = lab.guest(1), lab.guest(2)
    lab.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.spawn("host", "python3", "-m", "http.server", "2042", "--bind", GATEWAY)
    lab.spawn(other, "python3", "-m", "http.server", "80")
    lab.run("host", "ip", "address", "add", f"{METADATA}/32", "dev", "uplink")

    def asked(address: str, port: int) -> str:
        url = f"http://{address}:{port}/"
        done = subprocess.run(
            [*lab.inside(guest), "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "1",
             url],
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    assert lab.seen_by_web(guest, seconds=1) == ""
    assert asked(GATEWAY, 2042) == "000"
    await client.guard(BRIDGE, [Service("tcp", GATEWAY, 2042)])
    until(lambda: asked(GATEWAY, 2042) == "200", "the result server's port")
    await client.enable(guest_ip(1), BRIDGE, "internet")
    assert lab.seen_by_web(guest) == UPLINK_ADDRESS
    assert asked(guest_ip(2), 80) == "000", "another guest"
    assert asked(UPLINK_ADDRESS, 2042) == "000", "another address of the host"
    assert asked(METADATA, 2042) == "000"
    assert lab.seen_by_web(other, seconds=1) == "", "the other has no route"


async def test_a_route_ends_at_once_also_for_what_was_begun(lab: Lab, client: RooterClient) -> None:
    guest = lab.guest(1)
    await client.enable(guest_ip(1), BRIDGE, "internet")
    lab.spawn(
        guest, "python3", "-c",
        "import itertools, socket, time\n"
        "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5555))\n"
        f"for n in itertools.count(): s.sendto(b'marked', ('{WEB}', 53)); time.sleep(.01)",
    )  # fmt: skip
    with lab.capture("host", "uplink", "udp port 53") as lines:
        until(lambda: any("marked" in line for line in lines()), "the flow")
        await client.disable(guest_ip(1))
        await asyncio.sleep(0)
        with lab.capture("host", "uplink") as after, lab.capture("host", BRIDGE) as before:
            until(lambda: sum("marked" in line for line in before()) > 20, "it goes on")
            assert not [line for line in after() if "marked" in line]
    await client.enable(guest_ip(1), BRIDGE, "internet")
    with lab.capture("host", "uplink", f"src host {UPLINK_ADDRESS}") as lines:
        until(lambda: any("marked" in line for line in lines()), "the same ports once more")


async def test_a_client_that_dies_leaves_its_guests_shut(
    lab: Lab, cwd: Path, client: RooterClient
) -> None:
    guest = lab.guest(1)
    lost = await client.enable(guest_ip(1), BRIDGE, "internet")
    assert lab.seen_by_web(guest) == UPLINK_ADDRESS
    await client.close()
    assert lost.is_set()
    until(lambda: not [r for r in lab.rules() if r.get("src") == guest_ip(1)], "the rule")
    assert lab.seen_by_web(guest, seconds=1) == ""


async def test_a_rooter_that_is_killed_leaves_the_route_as_it_was_and_the_next_shuts_all(
    lab: Lab, rooter: subprocess.Popen[bytes], start_rooter: Start, client: RooterClient
) -> None:
    guest, other = lab.guest(1), lab.guest(2)
    lost = await client.enable(guest_ip(1), BRIDGE, "internet")
    for pid in lab.pids("host", "cuckoo_api"):
        os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(lost.wait(), 5)
    assert lab.seen_by_web(guest) == UPLINK_ADDRESS
    assert lab.seen_by_web(other, seconds=1) == ""
    with pytest.raises(RooterUnavailable, match="Rooter not available"):
        await client.hello()
    start_rooter()
    assert lab.seen_by_web(guest, seconds=1) == ""
    await client.hello()


async def test_what_others_have_set_up_stays(
    lab: Lab, rooter: subprocess.Popen[bytes], client: RooterClient
) -> None:
    lab.run("host", "nft", "add", "table", "inet", "theirs")
    lab.run("host", "ip", "rule", "add", "from", "10.1.1.1", "table", "77", "priority", "18500")
    await client.enable(guest_ip(1), BRIDGE, "internet")
    forwarding = lab.run("host", "sysctl", "-n", "net.ipv4.ip_forward")
    rooter.terminate()
    assert rooter.wait(10) == 0
    assert "table inet theirs" in lab.run("host", "nft", "list", "tables")
    left = [rule for rule in lab.rules() if rule["priority"] == 18500]
    assert [rule["src"] for rule in left] == ["10.1.1.1"]
    assert lab.run("host", "sysctl", "-n", "net.ipv4.ip_forward") == forwarding
    assert lab.run("host", "sysctl", "-n", f"net.ipv4.conf.{BRIDGE}.forwarding") == "0\n"
    assert "iifname @guards jump leaving" in lab.run("host", "nft", "list", "ruleset"), "shut"


async def test_what_is_not_in_the_file_is_refused(lab: Lab, client: RooterClient) -> None:
    for guest, interface, route, reason in (
        ("192.168.156.101", "uplink", "internet", "not among"),
        ("192.168.156.101", BRIDGE, "vpn9", "no route"),
        ("192.168.156.101", BRIDGE, "vpn:random", "no route"),
        ("127.0.0.1", BRIDGE, "internet", "no host's address"),
        ("1.2.3.4; flush ruleset", BRIDGE, "internet", "no IPv4 address"),
    ):
        with pytest.raises(RooterRefused, match=reason):
            await client.enable(guest, interface, route)
    assert "ct mark set" not in lab.run("host", "nft", "list", "ruleset")


STRANGER = """
import os, socket, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
os.setgroups([])
os.setuid(12345)
connection = socket.socket(socket.AF_UNIX)
connection.connect(f"/proc/self/fd/{folder}/rooter.sock")
print(connection.recv(1000).decode())
"""


async def test_strangers_are_turned_away_and_told_of_in_the_log(lab: Lab, cwd: Path) -> None:
    (cwd / "rooter.sock").chmod(0o666)
    said = lab.run("host", sys.executable, "-c", STRANGER, str(cwd))
    assert "12345 may not ask the rooter" in said
    assert '"uid":12345' in (cwd / "rooter.log").read_text()
