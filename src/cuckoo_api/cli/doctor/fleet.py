"""Machines, by their hypervisors, and what of this host they need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from cuckoo_api.cli import machines
from cuckoo_api.cli.doctor.finding import FAIL, OK, WARN, Finding
from cuckoo_api.cli.doctor.host import programs
from cuckoo_api.cli.doctor.network import cannot_listen
from cuckoo_api.fleet.checks import Seen, faults, look
from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.guest import GuestError
from cuckoo_api.machinery import Capability, MachineConfig, MachineryError, MachineState
from cuckoo_api.network.tunnels import INTERFACES
from cuckoo_api.settings import Settings
from cuckoo_api.store import Store

CAPTURE = {"tcpdump": "tcpdump", "prlimit": "util-linux"}
AGENT = 3.0
"""Seconds for an agent whose guest runs already."""


@dataclass
class Needs:
    """What good machines need of this host."""

    results: set[tuple[str, int]] = field(default_factory=set)
    """Where their guests look for the result server."""
    captures: bool = False
    """Whether this host has to capture for them."""


async def each_machine(settings: Settings, *, deep: bool) -> AsyncIterator[Finding]:
    """Each by its hypervisor; with ``deep``, restored, reached and stopped."""
    if not any(section.machines for section in settings.machinery.values()):
        yield Finding(WARN, "machines", "none is configured", "cuckoo guest build")
        return
    good: list[Seen] = []
    needs = Needs()
    async with machines.opened(settings, list(settings.machinery)) as hypervisors:
        for hypervisor, fault in hypervisors:
            if fault:
                yield Finding(FAIL, hypervisor.name, fault, f"conf/{hypervisor.name}.conf")
                continue
            for config in settings.machinery[hypervisor.name].machines:
                async for finding in _machine(hypervisor, config, good, needs):
                    yield finding
        # while they are open: some make the address themselves
        for finding in _needed(needs):
            yield finding
    if deep:
        for proof in await machines.prove_all(settings):
            level = FAIL if proof.fault else OK
            yield Finding(level, proof.name, proof.fault or "restored, reached and stopped")


async def _machine(
    hypervisor: Hypervisor, config: MachineConfig, good: list[Seen], needs: Needs
) -> AsyncIterator[Finding]:
    place = f"conf/{hypervisor.name}.conf"
    try:
        seen = await look(hypervisor, config, await hypervisor.labels())
        wrong = faults(seen, good)
        guest = hypervisor.address(config)
        runs = await hypervisor.state(config.label) is MachineState.RUNNING
    except MachineryError as exc:
        yield Finding(FAIL, config.name, str(exc), place)
        return
    good.append(seen)
    for each in wrong:
        yield Finding(FAIL, config.name, each, place)
    if wrong:
        return
    yield Finding(OK, config.name, f"{hypervisor.name} has it")
    if "results" not in guest.sockets:
        needs.results.add((guest.resultserver_ip, guest.resultserver_port))
    if config.interface and Capability.CAPTURE not in hypervisor.capabilities:
        needs.captures = True
        if not (INTERFACES / config.interface).exists():
            text = f"there is no interface {config.interface}: its network is not captured"
            yield Finding(WARN, config.name, text, f"start its network, or correct {place}")
    if runs:
        yield await _agent(hypervisor, config)


async def _agent(hypervisor: Hypervisor, config: MachineConfig) -> Finding:
    """Of a guest that somebody has started."""
    try:
        await machines.wait_for_agent(hypervisor, config, AGENT)
    except GuestError as exc:
        advice = "see to it at the guest's screen: the agent runs, at this address, firewall open"
        return Finding(WARN, config.name, f"it runs. {exc}", advice)
    return Finding(OK, config.name, "it runs, and its agent answers")


def _needed(needs: Needs) -> Iterator[Finding]:
    for host, port in sorted(needs.results):
        fault = cannot_listen(host, port)
        if fault:
            advice = "give this host the address, stop what has the port, or change [resultserver]"
            text = f"{host}:{port}: {fault}; the server does not start"
            yield Finding(FAIL, "result server", text, advice)
        else:
            yield Finding(OK, "result server", f"{host}:{port} is free")
    if needs.captures:
        yield from programs(CAPTURE, "guests' networks are not captured")


async def machines_of_server(settings: Settings) -> AsyncIterator[Finding]:
    """As the running server has them."""
    store = await Store.open(settings.database_url)
    try:
        for machine in await store.machines.list():
            level = FAIL if machine.quarantine else OK
            said = machine.quarantine or f"the server has it: {machine.status or 'unknown'}"
            yield Finding(level, machine.name, said, "" if level == OK else "see the server's log")
    finally:
        await store.close()
