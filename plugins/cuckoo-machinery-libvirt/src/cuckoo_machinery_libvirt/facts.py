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


@dataclass(frozen=True)
class Hardware:
    """A machine as libvirt describes it."""

    label: str
    disks: tuple[Disk, ...]
    macs: tuple[str, ...]
    netdevs: tuple[str, ...]
    """QEMU's name for each network card's other end, of a running machine."""
    platform: str


def hardware(xml: str) -> Hardware:
    """Read a domain's XML."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt made it
    disks = [
        Disk(
            target=_attribute(disk, "target", "dev"),
            source=next(iter(source.attrib.values()), "") if source is not None else "",
            format=_attribute(disk, "driver", "type") or "raw",
            transient=disk.find("transient") is not None,
        )
        for disk in root.iterfind("devices/disk")
        for source in [disk.find("source")]
        if disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None
    ]
    cards = root.findall("devices/interface")
    aliases = [_attribute(card, "alias", "name") for card in cards]
    system = next((found.get("id", "") for found in root.iter(_OS)), "")
    return Hardware(
        label=root.findtext("name", ""),
        disks=tuple(disks),
        macs=tuple(filter(None, (_attribute(card, "mac", "address") for card in cards))),
        netdevs=tuple(f"host{alias}" for alias in aliases if alias),
        platform=next((word for host, word in _SYSTEMS.items() if host in system), "linux")
        if system
        else "",
    )


def faults(machine: Hardware, others: Iterable[Hardware], *, has_snapshots: bool) -> list[str]:
    """Why a machine cannot be used as it is, each with what to do."""
    found = []
    if not has_snapshots:
        if not machine.disks:
            found.append("it has no disk, so libvirt cannot keep a live snapshot: add a qcow2 disk")
        found += [
            f"disk {disk.target} is {disk.format}, which cannot hold a live snapshot: "
            f"convert it with qemu-img convert -O qcow2"
            for disk in machine.disks
            if disk.format != "qcow2" and not disk.transient
        ]
    for other in others:
        shared = {d.source for d in machine.disks if d.source} & {d.source for d in other.disks}
        found += [
            f"it writes to the same disk as {other.label}: give each a copy of {source}"
            for source in sorted(shared)
        ]
        found += [
            f"{other.label} has the same MAC address {mac}: change one of them"
            for mac in sorted(set(machine.macs) & set(other.macs))
        ]
    return found


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")
