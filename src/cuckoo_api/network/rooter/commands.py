"""What the rooter can be asked, and what it answers: one JSON object a line, in turns.

A route is asked for by its name. Which interface, table or address that is says routing.conf, as
the rooter itself has read it: a client that was taken over can open nothing else.

The answer to ``plug`` brings a descriptor with it (``SCM_RIGHTS``, with the line's first byte): the
tap, on which each read and write is one Ethernet frame. It is the client's, and may be given to
the program that runs the guest. No command brings one to the rooter.
"""

from __future__ import annotations

import msgspec

PROTOCOL = 1
MAX_LINE = 64 << 10
"""Bytes of one command or answer."""


class Service(msgspec.Struct, frozen=True):
    """A port of the host that guests may reach."""

    protocol: str
    """``tcp`` or ``udp``."""
    address: str
    port: int


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="do"):
    """Is anybody there, and does it speak this protocol?"""

    protocol: int = PROTOCOL


class Guard(msgspec.Struct, frozen=True, tag="guard", tag_field="do"):
    """Let the guests of a network reach these services of the host, and nothing else of it."""

    interface: str
    services: list[Service]


class Enable(msgspec.Struct, frozen=True, tag="enable", tag_field="do"):
    """Give a guest a route, in place of the one that it has."""

    guest: str
    """Its IPv4 address."""
    interface: str
    """Its network."""
    route: str


class Disable(msgspec.Struct, frozen=True, tag="disable", tag_field="do"):
    """Take a guest's route. What it has begun ends at once."""

    guest: str


class Peers(msgspec.Struct, frozen=True, tag="peers", tag_field="do"):
    """What WireGuard knows of the peers of a VPN."""

    vpn: str


class Plug(msgspec.Struct, frozen=True, tag="plug", tag_field="do"):
    """Make a tap for a guest in a bridge of the rooter's, in place of the one that it has.

    It goes with its last descriptor, with ``unplug``, and with this connection.
    """

    interface: str
    """A bridge of ``[rooter] bridges``."""
    guest: str
    """Its IPv4 address, of the bridge's network: it can use no other."""
    mac: str
    """Its Ethernet address, a locally administered one: it can use no other."""


class Unplug(msgspec.Struct, frozen=True, tag="unplug", tag_field="do"):
    """Take a guest's tap away, and its route."""

    guest: str


Command = Hello | Guard | Enable | Disable | Peers | Plug | Unplug


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="is"):
    """It was done."""


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="is"):
    """It was not done, and why."""

    reason: str


class Peer(msgspec.Struct, frozen=True):
    """One peer; its keys are nobody's business."""

    endpoint: str
    handshake: int
    """When it last proved that it is there, in seconds since 1970; 0: never."""
    rx_bytes: int
    tx_bytes: int
    allowed: list[str]
    """The networks that it carries, such as 0.0.0.0/0."""


class Known(msgspec.Struct, frozen=True, tag="known", tag_field="is"):
    """The peers of a VPN."""

    peers: list[Peer]


class Plugged(msgspec.Struct, frozen=True, tag="plugged", tag_field="is"):
    """The tap is there; its descriptor comes with this line."""

    tap: str
    """Its name on the host."""


Answer = Done | Refused | Known | Plugged

decode_command = msgspec.json.Decoder(Command).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def encode(message: Command | Answer) -> bytes:
    """The line for it."""
    return msgspec.json.encode(message) + b"\n"
