"""The plain values that cross the line between the core and a machinery plugin."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Protocol

ROUTED_MARK = 0xC0000000
"""In the conntrack mark of what a guest may send beyond its network, and of the answers; with
:data:`ROUTED_MASK`. Only the privileged helper sets it. A backend that shuts its guests' network
itself lets such packets through: where they may go is then the helper's to say."""
ROUTED_MASK = 0xFF000000


class MachineState(enum.StrEnum):
    """The hypervisor's word for what a machine is doing now."""

    RUNNING = "running"
    POWEROFF = "poweroff"
    PAUSED = "paused"
    SAVED = "saved"
    ABORTED = "aborted"
    """It ended without being asked to: the hypervisor process died, or the guest crashed."""
    UNREACHABLE = "unreachable"
    """The hypervisor does not answer, so nobody knows."""


class Capability(enum.Flag):
    """What a backend can do beyond the required methods; one flag for each optional method."""

    NONE = 0
    REBOOT = enum.auto()
    PAUSE = enum.auto()
    SNAPSHOT = enum.auto()
    SCREENSHOT = enum.auto()
    MEMORY_DUMP = enum.auto()
    CAPTURE = enum.auto()
    WATCH = enum.auto()
    ADDRESS = enum.auto()
    CONSOLE = enum.auto()
    INSPECT = enum.auto()


class Secret(str):
    """A value that no ``repr`` shows. In all else it is the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True)
class Option:
    """One key that a plugin reads from its configuration file.

    The core knows the keys of every machine (``label``, ``platform``, ``ip``, ``snapshot``,
    ``interface``, ``tags``, ``resultserver_ip``, ``resultserver_port``, ``options``); a plugin
    lists the others, so that a misspelt one can be answered with the nearest known name.
    """

    name: str
    default: str = ""
    help: str = ""
    choices: tuple[str, ...] = ()
    """Allowed values, lower case; empty means any."""
    secret: bool = False
    """A password or the like: the value comes as a :class:`Secret`. Never put it into an error."""


@dataclass(frozen=True, slots=True)
class Service:
    """A port of the host that guests may reach. Everything else is shut unless routed."""

    name: str
    """``results``, ``dns`` or ``http``."""
    protocol: str
    """``tcp`` or ``udp``."""
    port: int


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One machine's section of the configuration file, as the core read and checked it."""

    label: str
    """The hypervisor's own name for the machine; the key of every call."""
    name: str
    """The section's name, which the API shows."""
    platform: str = "linux"
    ip: str = ""
    interface: str = ""
    snapshot: str = ""
    resultserver_ip: str = ""
    resultserver_port: int = 2042
    tags: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    """The plugin's own keys for this machine, every declared one present."""


class Tap(Protocol):
    """A guest's network interface, made by somebody who has the right to. Since 1.1."""

    @property
    def descriptor(self) -> int:
        """On which each read and write is one Ethernet frame; the backend's, to give to the program
        that runs the guest, and to close. The tap goes with its last descriptor."""

    async def unplug(self) -> None:
        """Take it away; call it when the guest is off. Raises nothing."""


class Taps(Protocol):
    """Where a backend that runs guests itself, and need not be root, has taps from. Since 1.1."""

    @property
    def bridges(self) -> Mapping[str, IPv4Interface]:
        """The bridges that there are, by name, each with the guests' gateway as its address.

        They are shut: the backend needs no firewall of its own there.
        """

    async def ready(self) -> None:
        """Raise BackendUnavailable where no tap could be had now."""

    async def plug(self, bridge: str, guest: str, mac: str) -> Tap:
        """Plug a guest in, in place of the tap that it has from here.

        It can use no other IPv4 and Ethernet address than these; the latter is to be a locally
        administered one. Raises BackendUnavailable.
        """


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """All that a backend is told when it is made."""

    name: str
    """The machinery's name, as in ``[cuckoo] machinery``."""
    machines: tuple[MachineConfig, ...]
    state_dir: Path
    """A folder of the backend's own that survives restarts; it exists and is private (0700)."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The plugin's own keys, every declared one present."""
    services: tuple[Service, ...] = ()
    """What guests may reach on the host, for a backend that makes the guests' network itself."""
    taps: Taps | None = None
    """Since 1.1. Networks that are made for guests, where ``[rooter] bridges`` names some."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What a hypervisor tells of one machine, for the check at start-up and for discovery.

    Empty where the hypervisor does not know.
    """

    snapshots: tuple[str, ...] = ()
    """All of them, by the names that ``snapshot`` takes; a name that it has twice stands here
    twice."""
    current_snapshot: str = ""
    """The one that an empty ``snapshot`` restores."""
    platform: str = ""
    """``windows``, ``linux`` or ``darwin``, where the hypervisor was told."""
    ip: str = ""
    """The guest's address, where the hypervisor has one now."""
    uuid: str = ""
    """What no other machine has, whatever label it goes by: two machines of the configuration
    that have the same are one."""
    faults: tuple[str, ...] = ()
    """Why the machine cannot be used as it is, each with what to do; a missing snapshot is not
    among them, for the core compares the names."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One event of :meth:`MachineryBackend.watch`."""

    label: str
    state: MachineState
    reason: str = ""
    """The hypervisor's own words, where it gave any."""


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """Where a running guest is reached, and where it finds the host.

    Only a backend whose guests are not simply at their configured address has
    :attr:`Capability.ADDRESS`; for the others the core uses ``MachineConfig.ip``.
    """

    agent: str
    """The agent's ``host:port``, or ``unix:/path`` where a local socket leads to it."""
    resultserver_ip: str
    """The address at which the guest finds the result server."""
    resultserver_port: int
    sockets: Mapping[str, Path] = field(default_factory=dict)
    """For each :class:`Service` by name: a unix stream socket path on which the core must listen
    **before** ``restore_and_start``; the backend connects the guest's connections to it. Empty
    where the guest reaches the host over a real network."""
