"""Guests on a bridge of ours: taps that vanish with their QEMU, and a firewall that shuts all.

A guest reaches the listed services on the bridge's address and nothing else: not the host's other
ports, not another guest, not the network beyond. Every name here is derived from the bridge's,
so what an earlier process left behind is found and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import ipaddress
import os
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from cuckoo_api.machinery import (
    ROUTED_MARK,
    ROUTED_MASK,
    BackendUnavailable,
    BadConfig,
    GuestAddress,
    Service,
)
from cuckoo_machinery_qemu.spec import Place

AGENT_PORT = 8000
LAST_METRIC = "4096"
"""Of a route that holds while there is no bridge."""
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def firewall(bridge: str, machines: Iterable[Place], services: Iterable[Service]) -> str:
    """The nftables rules, as text for ``nft -f``; they replace an older table of the same name."""
    lines = []
    for service in services:
        rule = f"ip daddr @hosts {service.protocol} dport {service.port} accept"
        lines.append(rule)
    machines = list(machines)
    gateways = ", ".join(sorted({m.gateway for m in machines}))
    allowed = "\n        ".join(lines)
    own = "\n        ".join(
        f'iifname "{m.tap}" ether saddr != {m.mac} drop\n'
        f'        iifname "{m.tap}" ether type arp arp saddr ip != {m.ip} drop\n'
        f'        iifname "{m.tap}" ether type ip ip saddr != {m.ip} drop'
        for m in machines
    )
    return f"""\
table inet cuckoo_{bridge}
delete table inet cuckoo_{bridge}
table inet cuckoo_{bridge} {{
    set hosts {{ type ipv4_addr; elements = {{ {gateways} }} }}
    chain guests {{
        ct state established,related accept
        {allowed}
        ct mark & {ROUTED_MASK:#x} == {ROUTED_MARK:#x} ct status dnat accept
        drop
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "{bridge}" jump guests
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        ct mark & {ROUTED_MASK:#x} == {ROUTED_MARK:#x} accept
        iifname "{bridge}" drop
        oifname "{bridge}" drop
    }}
}}
table bridge cuckoo_{bridge}
delete table bridge cuckoo_{bridge}
table bridge cuckoo_{bridge} {{
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        {own}
        iifname "ck*" ether type != {{ ip, arp }} drop
    }}
}}
"""


class BridgeNetwork:
    """The bridge, its firewall and its taps. Needs root."""

    kind = "bridge"

    def __init__(self, bridge: str, machines: Sequence[Place], services: Sequence[Service]) -> None:
        if not bridge.isascii() or not 0 < len(bridge) <= 15 or not bridge.isalnum():
            raise BadConfig(
                f"interface = {bridge!r}; allowed: 1 to 15 letters and digits, such as qemubr"
            )
        self._bridge = bridge
        self._machines = machines
        self._services = services

    async def open(self) -> None:
        """Make the bridge and its rules afresh. The rules come first: it never stands open."""
        # what the host still has for guests of an earlier bridge is not to leave by another way
        for network in self._networks():
            await _run("ip", "route", "replace", "unreachable", network, "metric", LAST_METRIC)
        await self._remove()
        await _run("nft", "-f", "-", stdin=firewall(self._bridge, self._machines, self._services))
        try:
            # an address of its own: else it is that of a tap, another one after every start, and a
            # restored guest goes on sending to the old one until its host has been asked anew
            await _run(
                "ip", "link", "add", self._bridge, "address", _mac(self._bridge), "type", "bridge"
            )
            # before it is up: a guest is never to see an address by which it could reach the host
            switch = Path(f"/proc/sys/net/ipv6/conf/{self._bridge}/disable_ipv6")
            await asyncio.to_thread(switch.write_text, "1")
            for gateway in sorted({m.gateway for m in self._machines}):
                await _run("ip", "address", "add", f"{gateway}/24", "dev", self._bridge)
            await _run("ip", "link", "set", self._bridge, "up")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Remove the bridge and the rules, whoever made them. Raises nothing."""
        await self._remove()
        for network in self._networks():
            with contextlib.suppress(BackendUnavailable):
                await _run("ip", "route", "delete", "unreachable", network, "metric", LAST_METRIC)

    def _networks(self) -> list[str]:
        return sorted({str(ipaddress.ip_network(f"{m.gateway}/24", False)) for m in self._machines})

    async def _remove(self) -> None:
        for command in (
            ("ip", "link", "delete", self._bridge, "type", "bridge"),
            ("nft", "delete", "table", "inet", f"cuckoo_{self._bridge}"),
            ("nft", "delete", "table", "bridge", f"cuckoo_{self._bridge}"),
        ):
            with contextlib.suppress(BackendUnavailable):
                await _run(*command)

    def address(self, place: Place, port: int) -> GuestAddress:
        """The guest is at its own address."""
        return GuestAddress(f"{place.ip}:{AGENT_PORT}", place.gateway, port)

    def launcher(self, place: Place) -> list[str]:
        """The words before QEMU's own: none."""
        return []

    async def disconnect(self, place: Place) -> None:
        """The tap has gone with its QEMU."""

    @contextlib.asynccontextmanager
    async def connect(self, place: Place) -> AsyncIterator[tuple[str, list[int]]]:
        """QEMU's ``-netdev`` and the tap's descriptor, which QEMU inherits and we then close."""
        tap = _open_tun(place)
        # making and ending a tap waits for the kernel's one lock on all networks: in threads
        attached = asyncio.create_task(asyncio.to_thread(_attach, tap, place))
        try:
            await asyncio.shield(attached)
            await _run(
                "ip", "-batch", "-",
                stdin=f"link set dev {place.tap} master {self._bridge}\n"
                f"link set dev {place.tap} type bridge_slave isolated on\n"
                f"link set dev {place.tap} up\n",
            )  # fmt: skip
            yield f"tap,id=net0,fd={tap},vhost=off", [tap]
        finally:
            await asyncio.shield(asyncio.create_task(_close(tap, attached)))


def _mac(bridge: str) -> str:
    """The bridge's address: always the same, and nobody else's."""
    return "02:" + hashlib.sha256(bridge.encode()).digest()[:5].hex(":")


def _open_tun(place: Place) -> int:
    """A descriptor that can become a tap. Raises BackendUnavailable."""
    try:
        return os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise BackendUnavailable(f"{place.label}: no tap {place.tap}: {exc}") from exc


def _attach(tap: int, place: Place) -> None:
    """Make it the machine's tap, which goes when its last descriptor is closed."""
    # no IFF_VNET_HDR: QEMU before 8.0 writes that header into its captures, and with offloads
    # on they would hold segments that were never on a wire
    request = struct.pack("16sH22x", place.tap.encode(), _IFF_TAP | _IFF_NO_PI)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, request)
    except OSError as exc:
        raise BackendUnavailable(f"{place.label}: no tap {place.tap}: {exc}") from exc


async def _close(tap: int, attached: asyncio.Task[None]) -> None:
    """Let go of a tap; not before it is made, else its number might be another file's by then."""
    await asyncio.wait({attached})
    await asyncio.to_thread(os.close, tap)


async def _run(*command: str, stdin: str = "") -> None:
    """Run one of the network programs. Raises BackendUnavailable with its own words."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as exc:
        raise BadConfig(
            f"{command[0]} is not installed (apt-get install iproute2 nftables)"
        ) from exc
    _, errors = await process.communicate(stdin.encode())
    if process.returncode:
        text = " ".join(errors.decode(errors="replace").split())
        raise BackendUnavailable(f"{' '.join(command)}: {text}")
