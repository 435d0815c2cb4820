"""routing.conf: where guests' packets may go, with the names and keys of Cuckoo 2."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuckoo_api.settings.fields import choice, number

if TYPE_CHECKING:
    from cuckoo_api.settings.ini import IniFile

_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_COUNTRY = re.compile(r"[A-Za-z]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_BRIDGE = re.compile(r"(?!(?:all|default|lo):)([A-Za-z0-9][A-Za-z0-9_-]{0,14}):([0-9./]+)")
RESERVED = frozenset({"none", "sinkhole", "drop", "internet", "inetsim", "tor", "vpn", "random"})
"""Names that no VPN may have."""
ANY_VPN = "vpn:random"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSection:
    """``[routing]`` of routing.conf."""

    route: str = "none"
    """What a task has that names none. ``none``: a guest reaches the result server and nothing
    else; ``sinkhole``: also a DNS and HTTP responder on the host that answers every name and
    request itself; the others need the rooter."""
    internet: str = "none"
    """The interface of the plain uplink, for the route ``internet``; none: it is not offered."""
    rt_table: str = "main"
    """The routing table of the plain uplink."""
    drop: bool = False
    """Whether the route ``drop`` is offered: as ``none``, and enforced by the rooter."""
    on_down: str = choice("fail", "fail", "wait")
    """What becomes of a task whose route is down: it fails, or waits for it in the queue."""
    dns: str = ""
    """Where a routed guest's questions to its gateway go, by its route; empty: nowhere."""
    sinkhole_dns_port: int = number(53, 1, 65535)
    sinkhole_http_port: int = number(80, 1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class InetsimSection:
    """``[inetsim]``: a host that plays the internet."""

    enabled: bool = False
    server: str = ""
    """Its IPv4 address, this host's or another's."""
    ports: tuple[str, ...] = ()
    """``FROM:TO`` for each port that is another there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorSection:
    """``[tor]``: a Tor on this host, with ``TransPort`` and ``DNSPort`` at the guests' gateway."""

    enabled: bool = False
    dnsport: int = number(5353, 1, 65535)
    proxyport: int = number(9040, 1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class VpnSection:
    """``[vpn]``: which of the sections below are used."""

    enabled: bool = False
    vpns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RooterSection:
    """``[rooter]``: whom the privileged helper serves, and for which networks."""

    user: str = ""
    """Who may ask it, besides root."""
    group: str = ""
    """Whose members may ask it."""
    interfaces: tuple[str, ...] = ()
    """The guests' networks, as the host sees them: bridges. All of them are shut at its start."""
    bridges: tuple[str, ...] = ()
    """Bridges that it makes itself, each with the gateway's address, as ``qemubr:192.168.55.1/24``.
    They are among the ``interfaces`` without being named there."""

    @property
    def made(self) -> dict[str, ipaddress.IPv4Interface]:
        """The address of each bridge that it makes, by the bridge's name."""
        return dict(found for text in self.bridges if (found := bridge_of(text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vpn:
    """One VPN's section."""

    name: str = ""
    """What tasks call it; empty in the file: as its section."""
    description: str = ""
    interface: str = ""
    """Its interface on this host."""
    rt_table: str = ""
    """A routing table for it, by number or name; empty: one of the rooter's own."""
    type: str = choice("", "", "openvpn", "wireguard", "interface")
    """Empty: ``openvpn`` where there is a ``management``, else ``interface``."""
    management: str = ""
    """OpenVPN's management interface: the path of its socket, or ``host:port``."""
    probe: str = ""
    """What answers through the tunnel only: ``host`` (ICMP), ``host:port`` (TCP), or a
    ``http://`` address whose answer is the address it saw."""
    dns: str = ""
    """As ``[routing] dns``, for this VPN."""
    country: str = ""
    """Two letters, for ``vpn:CC``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """All of routing.conf. :func:`routes_of` has the names that tasks may ask for."""

    routing: RoutingSection = RoutingSection()
    inetsim: InetsimSection = InetsimSection()
    tor: TorSection = TorSection()
    rooter: RooterSection = RooterSection()
    vpns: Mapping[str, Vpn] = field(default_factory=dict)
    """By the name that tasks use."""
    socket: Path = Path("/run/cuckoo-rooter/rooter.sock")
    """Of the rooter; ``[cuckoo] rooter``."""

    @property
    def routes(self) -> frozenset[str]:
        """The names that a task may ask for.

        ``none`` is not among them where the sinkhole answers every guest.
        """
        offered = {self.routing.route}
        if self.routing.route != "sinkhole":
            offered.add("none")
        if self.routing.drop:
            offered.add("drop")
        if self.routing.internet != "none":
            offered.add("internet")
        if self.inetsim.enabled:
            offered.add("inetsim")
        if self.tor.enabled:
            offered.add("tor")
        if self.vpns:
            offered |= {ANY_VPN, *self.vpns}
            offered |= {f"vpn:{vpn.country}" for vpn in self.vpns.values() if vpn.country}
        return frozenset(offered)

    def needs_rooter(self, route: str) -> bool:
        """Whether the route is the rooter's to give."""
        return route not in {"none", "sinkhole"}

    def candidates(self, route: str) -> list[str]:
        """The routes that a name may mean: one, or every VPN that will do."""
        if route == ANY_VPN:
            return list(self.vpns)
        if route.startswith("vpn:"):
            country = route.removeprefix("vpn:")
            return [name for name, vpn in self.vpns.items() if vpn.country == country]
        return [route]


def bridge_of(text: str) -> tuple[str, ipaddress.IPv4Interface] | None:
    """A bridge's name and address; None for what is none, or leaves no room for guests."""
    if (found := _BRIDGE.fullmatch(text)) is None or "/" not in text:
        return None
    try:
        address = ipaddress.IPv4Interface(found[2])
    except ValueError:
        return None
    edges = {address.network.network_address, address.network.broadcast_address}
    elsewhere = address.is_global or address.is_multicast or address.is_unspecified
    special = elsewhere or address.is_loopback or address.is_link_local
    if special or address.ip in edges or not 8 <= address.network.prefixlen <= 30:
        return None
    return found[1], address


def with_made(rooter: RooterSection) -> RooterSection:
    """With the bridges that it makes among its interfaces."""
    return replace(rooter, interfaces=tuple(dict.fromkeys((*rooter.interfaces, *rooter.made))))


def complete(vpn: Vpn, section: str) -> Vpn:
    """With what follows from its section's name and its other keys."""
    kind = vpn.type or ("openvpn" if vpn.management else "interface")
    return replace(vpn, name=vpn.name or section, type=kind, country=vpn.country.lower())


def check_network(file: IniFile, network: Network) -> None:
    """Report what a single value cannot show."""
    routing = network.routing
    set_up = replace(network, routing=replace(routing, route="none")).routes
    allowed = ["none", "sinkhole", *sorted(set_up - {"none"})]
    if routing.route not in allowed:
        file.fault("routing", "route", f"{routing.route!r}; allowed: {', '.join(allowed)}")
    interfaces = [("routing", "internet", routing.internet)]
    interfaces += [("rooter", "interfaces", name) for name in network.rooter.interfaces]
    for section, key, name in interfaces:
        if not _INTERFACE.fullmatch(name):
            file.fault(section, key, f"{name!r}; allowed: an interface's name, such as eth0")
    _check_bridges(file, network.rooter)
    addresses = [("routing", "dns", routing.dns)]
    if network.inetsim.enabled:
        addresses.append(("inetsim", "server", network.inetsim.server or "nothing"))
    for section, key, text in addresses:
        if text and not is_ipv4(text):
            file.fault(section, key, f"{text!r}; allowed: an IPv4 address")
    for text in network.inetsim.ports:
        if not re.fullmatch(r"\d{1,5}:\d{1,5}", text) or not all(
            0 < int(port) < 65536 for port in text.split(":")
        ):
            file.fault("inetsim", "ports", f"{text!r}; allowed: ports such as 80:8080")
    if not is_table(routing.rt_table):
        file.fault("routing", "rt_table", f"{routing.rt_table!r}; allowed: a number or a name")


def _check_bridges(file: IniFile, rooter: RooterSection) -> None:
    seen: dict[str, ipaddress.IPv4Network] = {}
    for text in rooter.bridges:
        if (found := bridge_of(text)) is None:
            allowed = "a name and a private address with room for guests: qemubr:192.168.55.1/24"
            file.fault("rooter", "bridges", f"{text!r}; allowed: {allowed}")
            continue
        name, network = found[0], found[1].network
        for other, taken in seen.items():
            if other == name or taken.overlaps(network):
                file.fault("rooter", "bridges", f"{text!r}: {other} has this name or network")
        seen[name] = network


def read_vpns(file: IniFile, wanted: VpnSection, sections: Mapping[str, Vpn]) -> dict[str, Vpn]:
    """The VPNs by name, with what is wrong with each reported."""
    found: dict[str, Vpn] = {}
    for section, vpn in sections.items():
        name = vpn.name
        if name in RESERVED or not _NAME.fullmatch(name):
            file.fault(section, "name", f"{name!r}; allowed: letters and digits, no route's name")
        if name in found:
            file.fault(section, "name", f"{name!r} is another VPN's already")
        if not _INTERFACE.fullmatch(vpn.interface):
            file.fault(section, "interface", f"{vpn.interface!r}; allowed: such as tun0")
        if vpn.type == "openvpn" and not vpn.management:
            file.fault(section, "management", "is missing: only OpenVPN itself knows its state")
        if vpn.rt_table and not is_table(vpn.rt_table):
            file.fault(section, "rt_table", f"{vpn.rt_table!r}; allowed: a number or a name")
        if vpn.dns and not is_ipv4(vpn.dns):
            file.fault(section, "dns", f"{vpn.dns!r}; allowed: an IPv4 address")
        if vpn.country and not _COUNTRY.fullmatch(vpn.country):
            file.fault(section, "country", f"{vpn.country!r}; allowed: two letters, such as de")
        if vpn.type == "interface" and not vpn.probe:
            file.warn(section, "probe", "without it nothing tells whether the other end is there")
        found[name] = vpn
    if wanted.enabled and not found:
        file.fault("vpn", "vpns", "is empty; allowed: the sections of VPNs, separated by commas")
    return found


def is_ipv4(text: str) -> bool:
    """Whether it is one address."""
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def is_table(text: str) -> bool:
    """Whether it may name a routing table."""
    return bool(re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", text)) and text not in {"local", "255", "0"}
