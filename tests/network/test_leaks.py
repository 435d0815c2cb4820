"""No packet of a guest ever leaves by a wrong way, whatever dies: seen on the wires themselves.

A guest sends all the time, a marked payload among it, while things are broken. What the plain
uplink sees of it must be nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cuckoo_api.network.rooter.client import RooterClient
from netkit import (
    BLASTER,
    BRIDGE,
    GATEWAY,
    METADATA,
    ROUTING,
    UPLINK_ADDRESS,
    WEB,
    Lab,
    Start,
    guest_ip,
    lines_with,
    until,
)
from tunnelkit import OPENVPN_EXIT, WIREGUARD_EXIT, OpenVpn, WireGuard, certificates

VPNS = """
[vpn]
enabled = yes
vpns = vpn0, wg
[vpn0]
interface = tun0
[wg]
interface = {wireguard}
"""
MARK = "marked-payload"
TARGETS = (WEB, "8.8.8.8", GATEWAY, METADATA)
SPOOFER = """
import socket, sys
marker, web = sys.argv[1].encode(), sys.argv[2]
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.sendto(marker, ("fd00:2::9", 53))
six.sendto(marker, ("fd00:1::1", 53))
four = socket.socket(type=socket.SOCK_DGRAM)
four.bind(("192.168.156.250", 0))
four.sendto(marker, (web, 53))
"""
ENOUGH = 40
"""Marked packets that the guest sends after something broke, before the wire is looked at."""


@pytest.fixture
def tunnel(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> OpenVpn | WireGuard:
    made: OpenVpn | WireGuard
    if request.param == "vpn0":
        certificates(tmp_path / "openvpn")
        made = OpenVpn(lab, tmp_path / "openvpn")
    else:
        made = WireGuard(lab, tmp_path)
    made.start_server()
    made.start_client()
    return made


@pytest.fixture
async def client(cwd: Path, start_rooter: Start, lab: Lab) -> AsyncIterator[RooterClient]:
    (cwd / "conf" / "routing.conf").write_text(ROUTING + VPNS.format(wireguard=f"wg{lab.tag}"))
    # the host forwards, and lets all through: what holds guests back is the rooter alone
    lab.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    start_rooter()
    made = RooterClient(cwd / "rooter.sock")
    yield made
    await made.close()


def kill_rooter(lab: Lab) -> None:
    for pid in lab.pids("host", "cuckoo_api"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("tunnel", ["vpn0", "wg"], indirect=True)
@pytest.mark.parametrize(
    "event", ["killed", "deleted", "stopped", "rooter", "restarted", "client", "disabled"]
)
async def test_nothing_leaks_when_something_dies(
    lab: Lab,
    client: RooterClient,
    start_rooter: Start,
    tunnel: OpenVpn | WireGuard,
    event: str,
) -> None:
    name = "vpn0" if isinstance(tunnel, OpenVpn) else "wg"
    guest = lab.guest(1)
    await client.enable(guest_ip(1), BRIDGE, name)
    exits = {"vpn0": OPENVPN_EXIT, "wg": WIREGUARD_EXIT}
    assert lab.seen_by_web(guest) == exits[name], "it goes by the tunnel"
    with lab.capture("host", "uplink") as uplink, lab.capture("host", BRIDGE, "udp") as inside:
        lab.python(guest, BLASTER, MARK, *TARGETS)
        with lab.capture("host", tunnel.interface, "udp") as way:
            until(lambda: len(lines_with(way(), MARK)) > ENOUGH, "packets in the tunnel")
        match event:
            case "killed":
                tunnel.kill(tunnel.client, signal.SIGKILL)
            case "deleted":
                lab.run("host", "ip", "link", "delete", tunnel.interface)
            case "stopped":
                tunnel.kill(tunnel.server, signal.SIGSTOP)
            case "rooter":
                kill_rooter(lab)
            case "restarted":
                kill_rooter(lab)
                start_rooter()
            case "client":
                await client.close()
            case "disabled":
                await client.disable(guest_ip(1))
        before = len(lines_with(inside(), MARK))
        until(lambda: len(lines_with(inside(), MARK)) > before + ENOUGH, "the guest goes on")
        leaked = [line for line in uplink() if MARK in line or guest_ip(1) in line]
        assert not leaked
        assert not [line for line in uplink() if f"{UPLINK_ADDRESS}." in line], "nor in disguise"


@pytest.mark.parametrize("guard", ["firewall", "kill switch"])
@pytest.mark.parametrize("tunnel", ["vpn0"], indirect=True)
async def test_the_matrix_can_fail_without_its_guards(
    lab: Lab, client: RooterClient, tunnel: OpenVpn, guard: str
) -> None:
    """With one guard away the other still holds; with both away the wire shows the leak."""
    guest = lab.guest(1)
    await client.enable(guest_ip(1), BRIDGE, "vpn0")
    lab.python(guest, BLASTER, MARK, WEB)
    firewall: Callable[[], object] = lambda: lab.run(  # noqa: E731
        "host", "nft", "delete", "table", "inet", "cuckoo_rooter"
    )

    def kill_switch() -> None:
        [rule] = [rule for rule in lab.rules() if rule.get("src") == guest_ip(1)]
        lab.run("host", "ip", "route", "flush", "table", str(rule["table"]))
        lab.run("host", "ip", "rule", "delete", "iif", BRIDGE, "priority", "18999")

    first, second = (firewall, kill_switch) if guard == "firewall" else (kill_switch, firewall)
    kill_rooter(lab)  # else it puts the kill switch back when the tunnel goes
    with lab.capture("host", "uplink") as uplink, lab.capture("host", BRIDGE, "udp") as inside:
        tunnel.kill(tunnel.client, signal.SIGKILL)
        first()
        before = len(lines_with(inside(), MARK))
        until(lambda: len(lines_with(inside(), MARK)) > before + ENOUGH, "the guest goes on")
        assert not lines_with(uplink(), MARK)
        second()
        until(lambda: lines_with(uplink(), MARK), "a leak that the capture sees")


async def test_two_guests_that_swap_their_routes_never_use_each_other_s(
    lab: Lab, client: RooterClient, tmp_path: Path
) -> None:
    wireguard = WireGuard(lab, tmp_path)
    wireguard.start_server()
    wireguard.start_client()
    one, two = lab.guest(1), lab.guest(2)
    for number, guest in ((1, one), (2, two)):
        lab.python(guest, BLASTER, f"{MARK}-{number}", WEB)
    with (
        lab.capture("host", "uplink", "udp") as uplink,
        lab.capture("host", wireguard.interface) as tunnel,
    ):
        for _ in range(10):
            await asyncio.gather(
                client.enable(guest_ip(1), BRIDGE, "wg"), client.enable(guest_ip(2), BRIDGE, "drop")
            )
            await asyncio.gather(
                client.enable(guest_ip(1), BRIDGE, "drop"), client.enable(guest_ip(2), BRIDGE, "wg")
            )
        until(lambda: lines_with(tunnel(), f"{MARK}-2"), "the second's packets in the tunnel")
        assert lines_with(tunnel(), f"{MARK}-1")
        assert not lines_with(uplink(), MARK)


async def test_ipv6_and_foreign_sources_go_nowhere(lab: Lab, client: RooterClient) -> None:
    guest = lab.guest(1)
    lab.run("host", "ip", "-6", "address", "add", "fd00:1::1/64", "dev", BRIDGE, "nodad")
    lab.run("host", "ip", "-6", "address", "add", "fd00:2::1/64", "dev", "uplink", "nodad")
    lab.run(guest, "ip", "-6", "address", "add", "fd00:1::2/64", "dev", "eth0", "nodad")
    lab.run(guest, "ip", "-6", "route", "add", "default", "via", "fd00:1::1")
    host = lab.run("host", "cat", f"/sys/class/net/{BRIDGE}/address").strip()
    # it cannot find its gateway by asking: its IPv6 is shut
    lab.run(guest, "ip", "-6", "neigh", "add", "fd00:1::1", "lladdr", host, "dev", "eth0")
    lab.run(guest, "ip", "address", "add", "192.168.156.250/24", "dev", "eth0")
    await client.enable(guest_ip(1), BRIDGE, "internet")
    assert lab.seen_by_web(guest) == UPLINK_ADDRESS
    with lab.capture("host", "uplink") as uplink, lab.capture("host", BRIDGE) as inside:
        lab.run(guest, sys.executable, "-c", SPOOFER, MARK, WEB)
        until(lambda: len(lines_with(inside(), MARK)) >= 3, "it was sent")
        assert not [line for line in uplink() if "fd00:" in line or "192.168.156.250" in line]
        assert not lines_with(uplink(), MARK)
