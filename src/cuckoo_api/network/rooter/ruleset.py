"""The firewall as text for ``nft -f``: what guests may do is worked out here, and nowhere else.

The whole table is replaced at once, so there is no moment at which it is half of it. Without a
rule that says otherwise everything from and to a guests' network is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cuckoo_api.machinery import ROUTED_MARK
from cuckoo_api.network.rooter.commands import Service

TABLE = "cuckoo_rooter"
TAP = "ckr"
"""What the name of every tap of ours begins with; the QEMU plugin's have others."""
GROUP = "01:00:00:00:00:00"
"""The bit of an Ethernet address that is not one machine's."""
LINK_LOCAL = "169.254.0.0/16"
"""Where clouds keep the credentials of their machines."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Where a route leads. Without an interface, a server and a proxy: nowhere."""

    interface: str = ""
    """A way out, with ``table`` to choose it."""
    table: int = 0
    dns: str = ""
    server: str = ""
    """Gets everything, whatever it was addressed to."""
    ports: tuple[tuple[int, int], ...] = ()
    """Ports that are others at the server."""
    proxy: int = 0
    """A port of the host that gets all TCP; ``proxy_dns`` gets DNS."""
    proxy_dns: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """A guest's route. Its number is in the mark of each connection that was begun under it."""

    guest: str
    interface: str
    exit: Exit
    number: int
    route: str = ""
    """The name that it was asked for by."""

    @property
    def mark(self) -> str:
        return f"{ROUTED_MARK | (self.number & 0xFFFFFF):#010x}"

    @property
    def comes_from(self) -> str:
        return f'iifname "{self.interface}" ip saddr {self.guest}'


@dataclass(frozen=True, slots=True)
class Tap:
    """A guest's end of a bridge: what comes in by it comes from this guest, or is dropped."""

    name: str
    bridge: str
    guest: str
    mac: str


def tap_rules(taps: Iterable[Tap]) -> str:
    """The table that holds each guest to its own addresses, in place of the one that is there.

    It sends as itself, and hears what is for it or for all. What looks like a tap of ours and is in
    no rule has neither. Who runs a guest could give its tap another's Ethernet address: the bridge
    would then lead there what the host sends to the other.
    """
    taps = list(taps)
    return f"""\
table bridge {TABLE}
delete table bridge {TABLE}
table bridge {TABLE} {{
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        iifname "{TAP}*" jump sent
    }}
    chain postrouting {{
        type filter hook postrouting priority 300; policy accept;
        oifname "{TAP}*" jump heard
    }}
    chain heard {{
        ether daddr & {GROUP} == {GROUP} accept
        {_lines(f'oifname "{tap.name}" ether daddr {tap.mac} accept' for tap in taps)}
        drop
    }}
    chain sent {{
        {_lines(line for tap in taps for line in _own(tap))}
        drop
    }}
}}
"""


def _own(tap: Tap) -> Iterable[str]:
    sent = f'iifname "{tap.name}" ether saddr {tap.mac} ether type'
    yield f"{sent} ip ip saddr {tap.guest} accept"
    yield f"{sent} arp arp saddr ether {tap.mac} arp saddr ip {tap.guest} accept"


def ruleset(guards: Mapping[str, Sequence[Service]], grants: Iterable[Grant]) -> str:
    """The table, in place of the one that is there. ``guards``: services by interface."""
    grants = sorted(grants, key=lambda grant: grant.number)
    names = ", ".join(f'"{name}"' for name in sorted(guards))
    elements = f"elements = {{ {names} }}" if names else ""
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    set guards {{ type ifname; {elements}
    }}
    chain marking {{
        type filter hook prerouting priority mangle; policy accept;
        iifname @guards ct state new jump begins
    }}
    chain begins {{
        {_lines(f"{g.comes_from} ct mark set {g.mark}" for g in grants)}
    }}
    chain turning {{
        type nat hook prerouting priority dstnat; policy accept;
        {_lines(line for g in grants for line in _turned(g))}
    }}
    chain masking {{
        type nat hook postrouting priority srcnat; policy accept;
        {_lines(line for g in grants for line in _masked(g))}
    }}
    chain forward {{
        type filter hook forward priority -20; policy accept;
        iifname @guards jump leaving
        oifname @guards jump coming
    }}
    chain leaving {{
        meta nfproto != ipv4 drop
        ip daddr {LINK_LOCAL} drop
        oifname @guards drop
        {_lines(line for g in grants for line in _leaving(g))}
        drop
    }}
    chain coming {{
        {_lines(line for g in grants for line in _coming(g))}
        drop
    }}
    chain input {{
        type filter hook input priority -20; policy accept;
        iifname @guards jump host
    }}
    chain host {{
        meta nfproto != ipv4 drop
        ct state established,related accept
        {_lines(line for name in sorted(guards) for line in _open(name, guards[name]))}
        {_lines(line for g in grants for line in _proxied(g))}
        drop
    }}
    chain output {{
        type filter hook output priority -20; policy accept;
        oifname @guards meta nfproto ipv6 drop
    }}
}}
"""


def _lines(rules: Iterable[str]) -> str:
    return "\n        ".join(rules)


def _open(interface: str, services: Sequence[Service]) -> Iterable[str]:
    for one in services:
        yield f'iifname "{interface}" ip daddr {one.address} {one.protocol} dport {one.port} accept'


def _turned(grant: Grant) -> Iterable[str]:
    """What the guest addresses to somebody, and somebody else gets."""
    way, comes = grant.exit, grant.comes_from
    away = f"{comes} fib daddr type != local"
    if way.dns:
        for protocol in ("udp", "tcp"):
            yield f"{comes} fib daddr type local {protocol} dport 53 dnat ip to {way.dns}"
    for port, there in way.ports:
        for protocol in ("tcp", "udp"):
            yield f"{away} {protocol} dport {port} dnat ip to {way.server}:{there}"
    if way.server:
        yield f"{away} dnat ip to {way.server}"
    if way.proxy:
        yield f"{comes} udp dport 53 redirect to :{way.proxy_dns}"
        yield f"{away} meta l4proto tcp redirect to :{way.proxy}"


def _masked(grant: Grant) -> Iterable[str]:
    if grant.exit.interface:
        yield f'oifname "{grant.exit.interface}" ip saddr {grant.guest} masquerade'
    if grant.exit.server:
        yield f"ip saddr {grant.guest} ip daddr {grant.exit.server} masquerade"


def _leaving(grant: Grant) -> Iterable[str]:
    way = grant.exit
    if way.interface:
        yield f'{grant.comes_from} oifname "{way.interface}" ct mark {grant.mark} accept'
    if way.server:
        yield f"{grant.comes_from} ip daddr {way.server} ct mark {grant.mark} accept"


def _coming(grant: Grant) -> Iterable[str]:
    """Answers only, by the way that the question went."""
    way = grant.exit
    known = f"ip daddr {grant.guest} ct state established,related ct mark {grant.mark} accept"
    if way.interface:
        yield f'iifname "{way.interface}" {known}'
    if way.server:
        yield f"ip saddr {way.server} {known}"


def _proxied(grant: Grant) -> Iterable[str]:
    way = grant.exit
    turned = f"{grant.comes_from} ct status dnat ct mark {grant.mark}"
    if way.server:
        yield f"{turned} ip daddr {way.server} accept"
    if way.proxy:
        yield f"{turned} tcp dport {way.proxy} accept"
        yield f"{turned} udp dport {way.proxy_dns} accept"
