"""What the server knows of a machine, for the check at start-up and for people."""

from __future__ import annotations

from collections.abc import Iterator

from cuckoo_api.machinery import MachineFacts
from cuckoo_machinery_vsphere.inventory import Entry, Properties
from cuckoo_machinery_vsphere.operations import DEVICES, Snapshots, kept_disks

FACTS = [
    "config.guestId",
    "config.instanceUuid",
    "guest.ipAddress",
    "name",
    "runtime.connectionState",
    "runtime.question",
    "snapshot",
]
FEW = 100
"""Machines of which the disks are looked at too. A thousand's devices take too long to read; the
start of a machine looks at its disks in any case."""
_LINUX = (
    "almalinux", "amazonlinux", "asianux", "centos", "coreos", "crxpod", "debian", "fedora",
    "mandr", "nld", "oes", "opensuse", "oracle", "redhat", "rhel", "rocky", "sjds", "sles", "suse",
    "turbolinux", "ubuntu", "vmwarephoton",
)  # fmt: skip


def facts_wanted(machines: int) -> list[str]:
    """The properties to read of so many machines."""
    return [*FACTS, DEVICES] if machines <= FEW else FACTS


def facts_of(entry: Entry, has: Properties) -> MachineFacts:
    """From the properties of :func:`facts_wanted`, each of which may be unset."""
    snapshots = Snapshots.of(has)
    return MachineFacts(
        snapshots=tuple(node.name for node in snapshots.kept),
        current_snapshot=snapshots.current.name if snapshots.current else "",
        platform=_platform(str(has.get("config.guestId", ""))),
        ip=str(has.get("guest.ipAddress") or ""),
        uuid=str(has.get("config.instanceUuid") or entry.key),
        faults=tuple(_faults(entry, has)),
    )


def _platform(guest: str) -> str:
    guest = guest.lower()
    if guest.startswith("win"):
        return "windows"
    if guest.startswith("darwin"):
        return "darwin"
    return "linux" if "linux" in guest or guest.startswith(_LINUX) else ""


def _faults(entry: Entry, has: Properties) -> Iterator[str]:
    if entry.template:
        yield "it is a template (convert it into a virtual machine, or deploy one from it)"
    connection = has.get("runtime.connectionState", "connected")
    if connection != "connected":
        yield f"vSphere cannot reach it: it is {connection} (look at its host and its datastore)"
    question = has.get("runtime.question")
    if question is not None:
        yield f"it waits for an answer to: {' '.join(question.text.split())} (answer it in vSphere)"
    yield from kept_disks(has)
