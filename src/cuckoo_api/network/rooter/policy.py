"""What may be asked for, by routing.conf: it alone says what a command can mean."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.network.rooter.bridges import mac_of
from cuckoo_api.network.rooter.commands import Service
from cuckoo_api.network.rooter.kernel import table_number
from cuckoo_api.network.rooter.ruleset import Exit
from cuckoo_api.settings import Network

NOWHERE = frozenset({"drop", "none"})
MAX_SERVICES = 64
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC = re.compile(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}")
"""Of one machine, and locally administered."""


class NotAllowed(CuckooError):
    """A command that is not carried out, whoever gives it."""


def exit_of(network: Network, route: str) -> Exit:
    """Where a route leads. Raises NotAllowed for what is not in the file."""
    routing = network.routing
    if route not in network.routes or len(network.candidates(route)) != 1:
        raise NotAllowed(f"{route!r} is no route of this host's routing.conf")
    if route in NOWHERE:
        return Exit()
    if route == "internet":
        table = table_number(routing.rt_table, 0)
        return Exit(interface=routing.internet, table=table, dns=routing.dns)
    if route == "inetsim":
        ports = [text.split(":") for text in network.inetsim.ports]
        pairs = tuple((int(first), int(second)) for first, second in ports)
        return Exit(server=network.inetsim.server, ports=pairs, dns=network.inetsim.server)
    if route == "tor":
        return Exit(proxy=network.tor.proxyport, proxy_dns=network.tor.dnsport)
    [name] = network.candidates(route)
    if name not in network.vpns:
        raise NotAllowed(f"{route!r} leads nowhere")
    vpn = network.vpns[name]
    table = table_number(vpn.rt_table, list(network.vpns).index(name))
    return Exit(interface=vpn.interface, table=table, dns=vpn.dns or routing.dns)


def check_interface(network: Network, name: str) -> None:
    """Raise NotAllowed unless it is a guests' network."""
    if not _INTERFACE.fullmatch(name) or name not in network.rooter.interfaces:
        raise NotAllowed(f"{name!r:.60} is not among [rooter] interfaces in routing.conf")


def check_services(services: Sequence[Service]) -> None:
    """Raise NotAllowed unless they are ports of addresses, and not too many."""
    if len(services) > MAX_SERVICES:
        raise NotAllowed(f"more than {MAX_SERVICES} services")
    for one in services:
        check_address(one.address)
        if one.protocol not in {"tcp", "udp"} or not 0 < one.port < 65536:
            raise NotAllowed(f"{one.protocol}/{one.port}: no service")


def check_address(text: str) -> None:
    """Raise NotAllowed unless it is one IPv4 address of a host, written as it is."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise NotAllowed(f"{text!r:.60} is no IPv4 address") from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise NotAllowed(f"{text} is no host's address")


def check_place(network: Network, interface: str, guest: str, mac: str) -> None:
    """Raise NotAllowed unless such a guest may be in that bridge, and could not pass for us."""
    made = network.rooter.made
    if interface not in made:
        raise NotAllowed(f"{interface!r:.60} is not among [rooter] bridges in routing.conf")
    check_address(guest)
    address, own = ipaddress.IPv4Address(guest), made[interface]
    edges = {own.ip, own.network.network_address, own.network.broadcast_address}
    if address not in own.network or address in edges:
        raise NotAllowed(f"{guest} is no guest's address in {interface}'s network {own.network}")
    if not _MAC.fullmatch(mac) or mac == mac_of(interface):
        raise NotAllowed(f"{mac!r:.60} is no locally administered Ethernet address of a guest")
