"""What libvirt's description of a machine tells: its disks, its network card, its system."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree as ET

_SYSTEMS = {"microsoft.com": "windows", "apple.com": "darwin"}
_OS = "{http://libosinfo.org/xmlns/libvirt/domain/1.0}os"


@dataclass(frozen=True)
class Disk:
    """A disk that the guest can write to."""

    target: str
    source: str
    format: str
    transient: bool
    """Whether what is written goes when the machine stops."""
    shareable: bool


@dataclass(frozen=True)
class Card:
    """A network card."""

    mac: str
    netdev: str
    """QEMU's name for its other end; only a running machine has one."""
    is_virtio: bool
    uses_vhost: bool
    """Whether the kernel may move its packets, past QEMU."""


@dataclass(frozen=True)
class Hardware:
    """A machine as libvirt describes it."""

    label: str
    disks: tuple[Disk, ...]
    cards: tuple[Card, ...]
    platform: str

    @property
    def keeps_changes(self) -> bool:
        """Whether what the guest writes is still there at its next start."""
        return any(not disk.transient for disk in self.disks)


def hardware(xml: str) -> Hardware:
    """Read a domain's XML."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt made it
    disks = [
        Disk(
            target=_attribute(disk, "target", "dev"),
            source=next(iter(source.attrib.values()), "") if source is not None else "",
            format=_attribute(disk, "driver", "type") or "raw",
            transient=disk.find("transient") is not None,
            shareable=disk.find("shareable") is not None,
        )
        for disk in root.iterfind("devices/disk")
        for source in [disk.find("source")]
        if disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None
    ]
    cards = [
        Card(
            mac=_attribute(card, "mac", "address"),
            netdev=f"host{_attribute(card, 'alias', 'name')}",
            is_virtio=_attribute(card, "model", "type").startswith("virtio"),
            uses_vhost=root.get("type") == "kvm"
            and _attribute(card, "model", "type").startswith("virtio")
            and _attribute(card, "driver", "name") != "qemu",
        )
        for card in root.iterfind("devices/interface")
    ]
    system = next((found.get("id", "") for found in root.iter(_OS)), "")
    return Hardware(
        label=root.findtext("name", ""),
        disks=tuple(disks),
        cards=tuple(cards),
        platform=next((word for host, word in _SYSTEMS.items() if host in system), "linux")
        if system
        else "",
    )


def without_snapshot(machine: Hardware) -> list[str]:
    """What keeps a machine that has no snapshot from getting one, each with what to do."""
    if not machine.disks:
        return ["it has no disk, so libvirt cannot keep a live snapshot: add a qcow2 disk"]
    return [
        f"disk {disk.target} is {disk.format}, which cannot hold a live snapshot: "
        f"convert it with qemu-img convert -O qcow2"
        for disk in machine.disks
        if disk.format != "qcow2"
    ]


def duplicates(machine: Hardware, others: Iterable[Hardware]) -> list[str]:
    """What a machine has in common with others and may not, each with what to do."""
    found = []
    for other in others:
        found += [
            f"it writes to the same disk as {other.label}: give each a copy of {source}"
            for source in sorted(_sources(machine) & _sources(other))
        ]
        found += [
            f"{other.label} has the same MAC address {mac}: change one of them"
            for mac in sorted({c.mac for c in machine.cards} & {c.mac for c in other.cards})
        ]
    return found


def _sources(machine: Hardware) -> set[str]:
    return {disk.source for disk in machine.disks if disk.source and not disk.shareable}


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")
