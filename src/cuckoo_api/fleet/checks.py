"""What can be known to be wrong with a machine before a task is given to it."""

from __future__ import annotations

import difflib
import ipaddress
import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import psutil
import structlog

from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.machinery import (
    Capability,
    MachineConfig,
    MachineFacts,
    MachineNotFound,
    MachineryError,
)

log = structlog.get_logger()

_LISTED = 8
"""Labels that are listed where one is unknown; a hypervisor may have thousands."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A configured machine that its hypervisor has, with what the hypervisor tells of it."""

    manager: str
    config: MachineConfig
    facts: MachineFacts | None
    """None where nothing can be learnt, or not now."""
    reached_at_ip: bool
    """Whether the guest has to be at its configured address (the backend lacks ADDRESS)."""


async def look(hypervisor: Hypervisor, config: MachineConfig, known: Collection[str]) -> Seen:
    """See one machine; MachineNotFound where its hypervisor, which has ``known``, lacks it.

    A hypervisor that is slow to tell of a machine does not make the machine faulty.
    """
    if config.label not in known:
        raise MachineNotFound(_unknown(config, hypervisor.name, known))
    facts = None
    if Capability.INSPECT in hypervisor.capabilities:
        try:
            facts = await hypervisor.inspect(config.label)
        except MachineNotFound:
            raise
        except MachineryError as exc:
            log.warning("machine.not_inspected", machine=config.name, reason=str(exc))
    at_ip = Capability.ADDRESS not in hypervisor.capabilities
    return Seen(hypervisor.name, config, facts, at_ip)


def faults(seen: Seen, others: Iterable[Seen]) -> tuple[str, ...]:
    """All that is wrong with a machine, each with what to do; ``others`` are those in use."""
    found = [*_of_address(seen)]
    if seen.facts is not None:
        found += [*seen.facts.faults, *_of_snapshot(seen, seen.facts)]
        found += _of_use(seen.facts, others)
    return tuple(found)


def _unknown(config: MachineConfig, manager: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(config.label, known, _LISTED, 0.5) or sorted(known)[:_LISTED]
    more = f" and {len(known) - len(near)} more" if len(known) > len(near) else ""
    return (
        f"{config.label!r} is not known to the hypervisor; it has: {', '.join(near) or 'none'}"
        f"{more} "
        f"(correct 'label' in {_place(manager, config)})"
    )


def _of_snapshot(seen: Seen, facts: MachineFacts) -> Iterator[str]:
    wanted, there = seen.config.snapshot, facts.snapshots
    if wanted and wanted not in there:
        has = ", ".join(dict.fromkeys(there)) or "none"
        place = _place(seen.manager, seen.config)
        yield (
            f"it has no snapshot {wanted!r}, but: {has} (take it, or correct 'snapshot' in {place})"
        )
    elif there.count(wanted) > 1:
        yield f"{there.count(wanted)} of its snapshots are named {wanted!r} (rename the others)"


def _of_address(seen: Seen) -> Iterator[str]:
    ip = seen.config.ip
    if seen.reached_at_ip and ip and ip in _own_addresses():
        place = _place(seen.manager, seen.config)
        yield f"its address {ip} is this host's own (correct 'ip' in {place})"


def _of_use(facts: MachineFacts, others: Iterable[Seen]) -> Iterator[str]:
    if not facts.uuid and not facts.ip:
        return
    for other in others:
        place = _place(other.manager, other.config)
        if facts.uuid and other.facts is not None and facts.uuid == other.facts.uuid:
            yield f"it is the machine of {place} under another label (remove one of the two)"
        if facts.ip and facts.ip == other.config.ip:
            yield f"its guest has the address {facts.ip} of {place} (give it one of its own)"


def _place(manager: str, config: MachineConfig) -> str:
    return f"conf/{manager}.conf [{config.name}]"


def _own_addresses() -> set[str]:
    """This host's, without the loopback's: a guest there is a process of this host."""
    found = (
        a.address.partition("%")[0]
        for own in psutil.net_if_addrs().values()
        for a in own
        if a.family in (socket.AF_INET, socket.AF_INET6)
    )
    return {address for address in found if not ipaddress.ip_address(address).is_loopback}
