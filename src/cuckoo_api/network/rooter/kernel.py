"""The kernel's part: firewall, routing rules and tables, sysctls. Needs CAP_NET_ADMIN."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import structlog
from pyroute2 import AsyncIPRoute, NetlinkError  # type: ignore[import-untyped]

from cuckoo_api.network.rooter import bridges
from cuckoo_api.network.rooter.commands import Peer, Service
from cuckoo_api.network.rooter.netlink import (
    IPV4,
    KILL_SWITCH,
    OURS,
    KernelRefused,
    change,
    netlink,
)
from cuckoo_api.network.rooter.ruleset import Exit, Grant, Tap, ruleset, tap_rules

log = structlog.get_logger()

FIRST_RULE, LAST_RULE = 18000, 18999
"""Priorities: a guest's rule, and the one that ends everything else of a guests' network."""
FIRST_TABLE = 18000
"""Tables for VPNs that have none."""
UNREACHABLE = 7
SYSCTL = Path("/proc/sys/net/ipv4/conf")
TABLE_NAMES = (Path("/etc/iproute2/rt_tables"), Path("/usr/share/iproute2/rt_tables"))
PROGRAMS = {"nft": "nftables", "conntrack": "conntrack"}
"""What is run, and Debian's package of it."""


class Kernel:
    """What guests may do, as it stands in the kernel. One at a time."""

    def __init__(self) -> None:
        self._before: dict[Path, str] = {}
        """Sysctls as they were before we changed them."""
        self._apart: set[int] = set()
        """Ports of guests' bridges that cannot talk to each other any more."""

    async def reset(
        self, interfaces: Sequence[str], made: Mapping[str, IPv4Interface] | None = None
    ) -> None:
        """Shut these networks, and remove the rules and routes that another rooter has left.

        In this order: there is no moment at which a guest is less shut than before. ``made`` are
        the bridges that we make: their taps go, and their networks stay unreachable.
        """
        await self.apply(dict.fromkeys(interfaces, ()), (), () if made else None)
        kept = {str(address.network) for address in (made or {}).values()}
        async with netlink() as link:
            for rule in [r async for r in await link.get_rules(family=IPV4)]:
                if rule.get("protocol") == OURS:
                    await change(link.rule("del", **_same_rule(rule)), gone=True)
            for route in [r async for r in await link.get_routes(family=IPV4)]:
                if route["proto"] == OURS and _network(route) not in kept:
                    await change(link.route("del", **_same_route(route)), gone=True)
        await self.shut(interfaces)
        await bridges.sweep()

    async def shut(self, interfaces: Sequence[str]) -> None:
        """End the way of everything from these networks that has no route of its own."""
        async with netlink() as link:
            for name in interfaces:
                await change(
                    link.rule(
                        "add", family=IPV4, iifname=name, action="unreachable",
                        priority=LAST_RULE, protocol=OURS,
                    )
                )  # fmt: skip
        await self.part(interfaces)

    async def apply(
        self,
        guards: Mapping[str, Sequence[Service]],
        grants: Iterable[Grant],
        taps: Iterable[Tap] | None = None,
    ) -> None:
        """Replace the firewall, all at once. ``taps`` only where we make bridges."""
        own = "" if taps is None else tap_rules(taps)
        await run("nft", "-f", "-", stdin=ruleset(guards, grants) + own)

    async def set_up(self, made: Mapping[str, IPv4Interface]) -> None:
        """Make these bridges afresh; see :func:`bridges.make`."""
        await bridges.make(made)

    async def take_down(self, made: Mapping[str, IPv4Interface]) -> None:
        """Remove these bridges of ours; see :func:`bridges.remove`."""
        await bridges.remove(made)

    async def plug(self, tap: Tap) -> int:
        """Make a tap; see :func:`bridges.plug`."""
        return await bridges.plug(tap)

    async def unplug(self, tap: Tap) -> None:
        """Take it away, whoever holds it."""
        await bridges.unplug(tap)

    async def lead(self, grant: Grant) -> None:
        """Have the guest's packets look for their way in its exit's table. They may not yet go."""
        await self.forget(grant.guest)
        way = grant.exit
        table = way.table or 254
        if way.interface and table != 254:
            await self.fill(way)
        async with netlink() as link:
            await change(
                link.rule(
                    "add", family=IPV4, iifname=grant.interface, src=grant.guest, src_len=32,
                    table=table, priority=FIRST_RULE, protocol=OURS,
                )
            )  # fmt: skip
        back = way.interface or (await _way_to(way.server) if way.server else "")
        for name in filter(None, (grant.interface, back)):
            self._set(SYSCTL / name / "forwarding", "1")
        if way.interface:
            # answers come by an interface that the host itself would not take
            self._set(SYSCTL / way.interface / "rp_filter", "2")

    async def fill(self, way: Exit) -> None:
        """Put the way out into its table, before the route that takes over when it is gone."""
        async with netlink() as link:
            await change(
                link.route(
                    "replace", family=IPV4, dst="0.0.0.0/0", type="unreachable", table=way.table,
                    priority=KILL_SWITCH, proto=OURS,
                )
            )  # fmt: skip
            found = await link.link_lookup(ifname=way.interface)
            if not found:
                raise KernelRefused(f"there is no interface {way.interface}")
            await change(
                link.route(
                    "replace", family=IPV4, dst="0.0.0.0/0", oif=found[0], table=way.table,
                    proto=OURS,
                )
            )  # fmt: skip

    async def mislead(self, grant: Grant) -> None:
        """Undo :meth:`lead`; the firewall is shut already. Connections of the guest's end."""
        async with netlink() as link:
            for rule in [r async for r in await link.get_rules(family=IPV4)]:
                if rule.get("protocol") == OURS and rule.get("src") == grant.guest:
                    await change(link.rule("del", **_same_rule(rule)), gone=True)
        await self.forget(grant.guest)

    async def forget(self, guest: str) -> None:
        """End the guest's connections: another analysis may use the same ports."""
        # it ends with 1 where there is none
        await run("conntrack", "-D", "-f", "ipv4", "-s", guest, fine=(0, 1))

    async def peers(self, interface: str) -> list[Peer]:
        """What WireGuard knows. The first line has our own key, and each other one a secret."""
        lines = (await run("wg", "show", interface, "dump")).splitlines()[1:]
        return [
            Peer(
                endpoint=endpoint,
                handshake=int(handshake),
                rx_bytes=int(rx),
                tx_bytes=int(tx),
                allowed=[] if allowed == "(none)" else allowed.split(","),
            )
            for _, _, endpoint, allowed, handshake, rx, tx, _ in (x.split("\t") for x in lines)
        ]

    async def part(self, interfaces: Iterable[str]) -> None:
        """Isolate the ports of these bridges from each other: guests see the host alone."""
        async with netlink() as link:
            for name in interfaces:
                for bridge in await link.link_lookup(ifname=name):
                    ports = {p["index"] async for p in await link.get_links(master=bridge)}
                    for port in ports - self._apart:
                        await change(link.brport("set", index=port, isolated=1), gone=True)
                        self._apart.add(port)

    async def changed(self) -> AsyncIterator[str]:
        """The name of each interface that is made, or comes up."""
        async with AsyncIPRoute() as link:
            await link.bind()
            while True:
                async for message in link.get():
                    if message["event"] == "RTM_NEWLINK":
                        yield str(message.get("ifname"))
                    elif message["event"] == "RTM_DELLINK":
                        self._apart.discard(message["index"])

    def restore(self) -> None:
        """Put back what sysctls were. The guests stay shut: the firewall stays."""
        for path, value in self._before.items():
            with contextlib.suppress(OSError):
                path.write_text(value)
        self._before.clear()

    def _set(self, path: Path, value: str) -> None:
        try:
            now = path.read_text().strip()
            if now != value:
                path.write_text(value)
                self._before.setdefault(path, now)
        except OSError as exc:
            raise KernelRefused(f"{path}: {exc.strerror}") from exc


def table_number(text: str, index: int) -> int:
    """A table by its number or name; one of ours, for the VPN of this index, where none is named.

    Raises KernelRefused for a name that iproute2's files do not have.
    """
    if not text:
        return FIRST_TABLE + index
    if text.isdigit():
        return int(text)
    known = {"main": 254, "default": 253}
    for path in TABLE_NAMES:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                words = line.split("#")[0].split()
                if len(words) == 2 and words[0].isdigit():
                    known.setdefault(words[1], int(words[0]))
    if text not in known:
        raise KernelRefused(f"rt_table {text!r} is not in {TABLE_NAMES[0]}; write its number")
    return known[text]


async def _way_to(address: str) -> str:
    """The interface by which the host itself gets there; the loopback for its own addresses."""
    async with netlink() as link:
        try:
            [route] = await link.route("get", family=IPV4, dst=address)
            [found] = [x async for x in await link.get_links(route.get("oif"))]
        except (NetlinkError, ValueError) as exc:
            raise KernelRefused(f"there is no way to {address}: {exc}") from exc
        return str(found.get("ifname"))


def _same_rule(rule: Any) -> dict[str, Any]:
    found = {
        "family": IPV4,
        "priority": rule.get("priority"),
        "iifname": rule.get("iifname"),
        "src": rule.get("src"),
        "src_len": rule["src_len"],
        "table": rule.get("table"),
        "action": rule["action"],
    }
    return {key: value for key, value in found.items() if value is not None}


def _network(route: Any) -> str:
    return f"{route.get('dst') or '0.0.0.0'}/{route['dst_len']}"


def _same_route(route: Any) -> dict[str, Any]:
    found = {
        "family": IPV4,
        "dst": _network(route),
        "oif": route.get("oif"),
        "table": route.get("table"),
        "priority": route.get("priority"),
        "type": route["type"],
        "proto": OURS,
    }
    return {key: value for key, value in found.items() if value is not None}


async def run(*command: str, stdin: str = "", fine: Sequence[int] = (0,)) -> str:
    """A program's output. Raises KernelRefused with its own words."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as exc:
        package = PROGRAMS.get(command[0], "wireguard-tools")
        raise KernelRefused(f"{command[0]} is not installed (apt-get install {package})") from exc
    output, errors = await process.communicate(stdin.encode())
    if process.returncode not in fine:
        raise KernelRefused(f"{command[0]}: {' '.join(errors.decode(errors='replace').split())}")
    return output.decode(errors="replace")
