"""What is done to one machine, step by step. All of it blocks and runs in a link's thread.

Everything raises libvirt's own errors, which the link translates, or the contract's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import libvirt

from cuckoo_api.machinery import (
    MachineFacts,
    MachineryError,
    MachineState,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_machinery_libvirt.events import state_of
from cuckoo_machinery_libvirt.facts import Hardware, duplicates, hardware, without_snapshot

ON = (MachineState.RUNNING, MachineState.PAUSED)
MAX_SCREEN = 64 << 20
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"P6")
_CHUNK = 256 << 10
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERSISTENT = "and what a guest does to its disk would stay; take one with virsh snapshot-create-as"


def require(domain: libvirt.virDomain, *states: MachineState) -> MachineState:
    """The machine's state, which is one of these; else WrongState."""
    state = state_of(domain)
    if state not in states:
        raise WrongState(f"{domain.name()} is {state.value}, not {' or '.join(states)}")
    return state


# -- power ----------------------------------------------------------------------------------------


def restore(domain: libvirt.virDomain, name: str, given_up: threading.Event) -> None:
    """Revert to the snapshot, or where the name is empty to the current one, and run.

    Goes on to no further step once it was given up.
    """
    snapshot = _snapshot(domain, name)
    power_off(domain)
    if snapshot is not None and not given_up.is_set():
        domain.revertToSnapshot(snapshot)
    state = state_of(domain)
    if given_up.is_set():
        return
    if state not in ON:  # the snapshot is one of a machine that was off
        domain.create()
    elif state is MachineState.PAUSED:
        domain.resume()


def power_off(domain: libvirt.virDomain) -> MachineState:
    """Cut the power, and drop a saved memory; the state before."""
    before = state_of(domain)
    if domain.isActive():
        try:
            domain.destroy()
        except libvirt.libvirtError:
            if domain.isActive():  # else it ended by itself meanwhile
                raise
    if before is MachineState.SAVED:
        domain.managedSaveRemove()
    return before


def pause(domain: libvirt.virDomain) -> None:
    """Stop the processors, unless they stand."""
    if require(domain, *ON) is MachineState.RUNNING:
        domain.suspend()


# -- snapshots ------------------------------------------------------------------------------------


def snapshot_names(domain: libvirt.virDomain) -> list[str]:
    """The machine's snapshots; none where the hypervisor has no such thing."""
    try:
        return list(domain.snapshotListNames())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return []
        raise


def take_snapshot(domain: libvirt.virDomain, name: str) -> None:
    """Keep memory and disk under this name, in place of an older one."""
    require(domain, *ON)
    if name in snapshot_names(domain):
        domain.snapshotLookupByName(name).delete()
    domain.snapshotCreateXML(f"<domainsnapshot><name>{escape(name)}</name></domainsnapshot>")


def _snapshot(domain: libvirt.virDomain, name: str) -> libvirt.virDomainSnapshot | None:
    """The snapshot to restore; None for a machine that starts afresh without one."""
    names = snapshot_names(domain)
    if name in names:
        return domain.snapshotLookupByName(name)
    if name:
        there = ", ".join(sorted(names)) or "none"
        raise SnapshotNotFound(f"{domain.name()} has no snapshot {name!r}; it has: {there}")
    if names and domain.hasCurrentSnapshot():
        return domain.snapshotCurrent()
    if hardware(_description(domain)).keeps_changes:
        raise SnapshotNotFound(f"{domain.name()} has no current snapshot, {_PERSISTENT}")
    return None


# -- pictures and memory --------------------------------------------------------------------------


def screenshot(domain: libvirt.virDomain) -> bytes:
    """The screen, as PNG or PPM."""
    stream = domain.connect().newStream()
    picture = bytearray()
    try:
        kind = domain.screenshot(stream, 0)
        while len(picture) <= MAX_SCREEN and (chunk := stream.recv(_CHUNK)):
            picture += chunk
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
    if len(picture) > MAX_SCREEN or not picture.startswith(_PICTURES):
        raise MachineryError(
            f"{domain.name()}: the screen came as {len(picture)} bytes of {kind}, not as PNG or PPM"
        )
    return bytes(picture)


def write(path: Path, content: bytes) -> None:
    """Write a file; nothing is left of it after a failure."""
    try:
        path.write_bytes(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def dump_memory(domain: libvirt.virDomain, path: Path, kind: int) -> None:
    """Write the physical memory to a new file of ours; nothing is left there after a failure."""
    require(domain, *ON)
    # made here: libvirtd writes into it as root, and may give it to QEMU's user
    handle = os.open(path, _NEW, 0o600)
    try:
        domain.coreDumpWithFormat(str(path), kind, libvirt.VIR_DUMP_MEMORY_ONLY)
        _take_back(path, handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _take_back(path: Path, handle: int) -> None:
    if os.fstat(handle).st_uid == os.geteuid():
        return
    if os.geteuid() == 0:
        os.fchown(handle, 0, 0)
        return
    path.unlink()
    with os.fdopen(os.dup(handle), "rb") as reader, path.open("xb") as writer:
        reader.seek(0)
        shutil.copyfileobj(reader, writer, _CHUNK)


# -- facts ----------------------------------------------------------------------------------------


def inspect(domain: libvirt.virDomain, wanted: str | None, others: Iterable[str]) -> MachineFacts:
    """What libvirt knows of it. ``wanted`` is its configured snapshot; None: it has no section."""
    machine = hardware(_description(domain))
    names = snapshot_names(domain)
    current = domain.snapshotCurrent().getName() if names and domain.hasCurrentSnapshot() else ""
    found = duplicates(machine, _others(domain, others))
    if not names and (wanted != "" or machine.keeps_changes):
        found += without_snapshot(machine)
    if wanted == "" and not current and machine.keeps_changes:
        found.append(f"it has no current snapshot, {_PERSISTENT}")
    return MachineFacts(
        snapshots=tuple(names),
        current_snapshot=current,
        platform=machine.platform,
        ip=_leased_address(domain),
        uuid=domain.UUIDString(),
        faults=tuple(found),
    )


def qemu_can_capture(connection: libvirt.virConnect, labels: Iterable[str]) -> bool:
    """Whether the QEMU of each machine sees all its packets and may write them to a file of ours.

    One answer for all of them: else it would depend on the machine how a capture comes about.
    """
    if connection.getType() != "QEMU":
        return False
    if connection.getSecurityModel()[0] in ("apparmor", "selinux"):
        return False
    there = {domain.name(): domain for domain in connection.listAllDomains()}
    machines = [hardware(_description(there[label])) for label in labels if label in there]
    return not any(card.uses_vhost for machine in machines for card in machine.cards)


def _others(domain: libvirt.virDomain, labels: Iterable[str]) -> list[Hardware]:
    own = domain.name()
    there = {one.name(): one for one in domain.connect().listAllDomains()}
    return [
        hardware(_description(there[label])) for label in labels if label != own and label in there
    ]


def _description(domain: libvirt.virDomain) -> str:
    """Its XML as it is configured, without what belongs to the present run only."""
    persistent = domain.isPersistent()
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if persistent else 0))


def _leased_address(domain: libvirt.virDomain) -> str:
    if not domain.isActive():
        return ""
    try:
        cards = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    except libvirt.libvirtError:  # not on a network of libvirt's
        return ""
    return next((a["addr"] for card in cards.values() for a in card["addrs"] or ()), "")
