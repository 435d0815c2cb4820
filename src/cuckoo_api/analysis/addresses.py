"""Which addresses the server may call on somebody's behalf.

Whoever may name an address that the server then calls could reach with it what only the server
can: its own loopback, its network, its cloud's metadata.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import psutil
from yarl import URL

from cuckoo_api.model.errors import BadInput

MAX_URL = 2048

SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # looks public, and is Azure's for its own machines
        "192.0.0.0/24",  # Oracle's metadata; older Pythons take it for public
        "fec0::/10",  # as private as fd00::/8, before that was
    )
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class PrivateAddress(OSError):
    """The address is not one of the public internet."""


def is_public(text: str) -> bool:
    """Whether the address is one of the public internet, whatever form it is dressed in."""
    return _is_public(ipaddress.ip_address(text.partition("%")[0]))


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return _is_public(inner)
    special = address.is_multicast or address.is_reserved
    special = special or any(address in network for network in SPECIAL)
    return address.is_global and not special


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this one end at."""
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that is about to be connected to; PrivateAddress for some.

    Given to a connector it sees every address that is really used, after all names are resolved.
    """
    family, kind, protocol, _, (host, *_) = info
    if not is_public(host):
        raise PrivateAddress(f"{host} is not an address of the public internet")
    if _is_own(host):  # from here it may answer what it answers to nobody outside
        raise PrivateAddress(f"{host} is this host")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


def _is_own(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return any(
        ipaddress.ip_address(own.address.partition("%")[0]) == address
        for addresses in psutil.net_if_addrs().values()
        for own in addresses
        if own.family in (socket.AF_INET, socket.AF_INET6)
    )


def check_url(name: str, text: str, *, allow_private: bool) -> str:
    """The URL; BadInput for what can never be called. Names are resolved when they are called."""
    try:
        url = URL(text.strip())
        host = url.host or ""
        usable = url.scheme in ("http", "https") and host and url.user is None
        usable = usable and len(text) <= MAX_URL and text.isprintable() and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BadInput(
            f"{name}: expected an http:// or https:// address of at most {MAX_URL} characters, "
            f"without a user; got {text!r:.80}"
        )
    if not allow_private and not _may_be_public(host):
        raise BadInput(
            f"{name}: {host:.80} is not an address of the public internet; "
            "[webhooks] allow_private in conf/cuckoo.conf allows others"
        )
    return str(url)


def _may_be_public(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:  # a name
        return host.rstrip(".").rpartition(".")[2].lower() != "localhost"
