"""What can be known of a tunnel now: of its interface, and of who runs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.network import probe as probing
from cuckoo_api.network.rooter.client import RooterClient, RooterUnavailable
from cuckoo_api.network.rooter.commands import Peer
from cuckoo_api.settings import Vpn

INTERFACES = Path("/sys/class/net")
TIMEOUT = 2.0
"""Seconds for OpenVPN's management interface, which serves one at a time."""
MAX_LINES = 200
IFF_UP = 1


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. Times are not in it: see :class:`~cuckoo_api.network.vpn.Judge`."""

    present: bool = False
    """The interface is there and up, and so is what runs it."""
    connected: bool = True
    """As far as who runs it knows."""
    peer: str = ""
    rx_bytes: int = 0
    tx_bytes: int = 0
    heard: int | None = None
    """A counter that rises with whatever the peer sends, also when nobody uses the tunnel."""
    handshake: int | None = None
    """When WireGuard last agreed on keys with its peer, in seconds since 1970; 0: never."""
    probed: bool | None = None
    """Whether the probe was answered; None: there is none."""
    address: str = ""
    """The one that the probe's page saw."""
    error: str = ""


async def look_at(vpn: Vpn, rooter: RooterClient) -> Look:
    """Look once; a few seconds at most. Raises RooterUnavailable where only the rooter knows.

    A tunnel that nobody uses is silent. So each look sends something into it, for the next to see
    what came back.
    """
    rx, tx = _counters(vpn.interface)
    if not is_up(vpn.interface):
        return Look(error=f"there is no interface {vpn.interface} that is up")
    seen = Look(present=True, rx_bytes=rx, tx_bytes=tx)
    if vpn.type == "openvpn":
        probing.nudge(probing.NOBODY[0], vpn.interface)
        seen = await _openvpn(vpn.management, seen)
    elif vpn.type == "wireguard":
        seen = await _wireguard(vpn, rooter, seen)
    if not (seen.present and seen.connected and vpn.probe):
        return seen
    reply = await probing.ask(probing.parse(vpn.probe), vpn.interface)
    return replace(seen, probed=reply.answered, address=reply.address, error=reply.error)


async def _openvpn(where: str, seen: Look) -> Look:
    try:
        async with asyncio.timeout(TIMEOUT):
            said = await _management(where, "state", "status")
    except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
        reason = getattr(exc, "strerror", None) or "it does not answer"
        return replace(seen, present=False, error=f"OpenVPN's management at {where}: {reason}")
    state = (said["state"] or [""])[-1].split(",")
    word = state[1] if len(state) > 1 else "unknown"
    peer = ":".join(filter(None, state[4:6])) if len(state) > 5 else ""
    heard = 0
    for line in said["status"]:
        name, _, value = line.partition(",")
        if name == "TCP/UDP read bytes" and value.isdecimal():
            heard = int(value)
    if word != "CONNECTED":
        return replace(seen, connected=False, peer=peer, error=f"OpenVPN is in state {word[:40]}")
    return replace(seen, peer=peer, heard=heard)


async def _management(where: str, *commands: str) -> dict[str, list[str]]:
    """What OpenVPN answers to each command; then it is free for the next who asks."""
    host, colon, port = where.rpartition(":")
    if colon and "/" not in where:
        reader, writer = await asyncio.open_connection(host, int(port))
    else:
        reader, writer = await asyncio.open_unix_connection(where)
    said: dict[str, list[str]] = {}
    try:
        for command in commands:
            writer.write(f"{command}\n".encode())
            said[command] = await _lines_to_end(reader)
        writer.write(b"quit\n")
        await writer.drain()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return said


async def _lines_to_end(reader: asyncio.StreamReader) -> list[str]:
    found: list[str] = []
    while len(found) < MAX_LINES:
        line = (await reader.readuntil()).decode(errors="replace").strip()
        if line.startswith(">"):  # news that nobody asked for
            continue
        if line == "END" or line.startswith("ERROR:"):
            return found
        found.append(line)
    raise ValueError("it does not come to an end")


async def _wireguard(vpn: Vpn, rooter: RooterClient, seen: Look) -> Look:
    try:
        peers = await rooter.peers(vpn.name)
    except RooterUnavailable:
        raise
    except CuckooError as exc:
        return replace(seen, present=False, error=str(exc))
    found = exit_peer(peers)
    if found is None:
        return replace(seen, connected=False, error="WireGuard has no peer that carries IPv4")
    peer, address = found
    probing.nudge(address, vpn.interface)
    return replace(seen, peer=peer.endpoint, heard=peer.rx_bytes, handshake=peer.handshake)


def exit_peer(peers: list[Peer]) -> tuple[Peer, str] | None:
    """The peer that carries what is for anywhere, and an address that leads to it."""
    networks = sorted(_networks(peers), key=lambda one: -one[0].prefixlen)
    if not networks:
        return None
    widest, peer = networks[-1]
    own = (str(widest[0]), str(widest[-1]))
    for address in (*probing.NOBODY, *own):
        # the narrowest network that holds it decides, as in a routing table
        carriers = (one for network, one in networks if IPv4Address(address) in network)
        if next(carriers, None) is peer:
            return peer, address
    return peer, own[0]


def _networks(peers: list[Peer]) -> Iterator[tuple[IPv4Network, Peer]]:
    for peer in peers:
        for text in peer.allowed:
            with contextlib.suppress(ValueError):  # it is one of IPv6
                yield IPv4Network(text), peer


def is_up(interface: str) -> bool:
    """Whether the host has this interface, and it is up."""
    try:
        return bool(int((INTERFACES / interface / "flags").read_text(), 16) & IFF_UP)
    except (OSError, ValueError):
        return False


def _counters(interface: str) -> tuple[int, int]:
    folder = INTERFACES / interface / "statistics"
    try:
        return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())
    except (OSError, ValueError):
        return 0, 0
