"""``cuckoo machines``: what they do now, whether they work, and which others there are."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from cuckoo_api.cli.common import complaints, connect, console, settings_of, text
from cuckoo_api.cli.discovery import Found, conf
from cuckoo_api.fleet import Deadlines, load_plugins
from cuckoo_api.fleet.checks import Seen, faults, look
from cuckoo_api.fleet.deadlines import to_the_end
from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.fleet.setup import backend_configs
from cuckoo_api.guest import GuestClient, GuestError
from cuckoo_api.machinery import Capability, MachineConfig, MachineryError
from cuckoo_api.model.errors import BadInput, Unavailable
from cuckoo_api.network.rooter.taps import rooter_taps
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import Settings

HELD = "a server or another command has the machines: stop it first. It runs"
"""What is said before the working directory and the process id."""
NO_MACHINE = (
    "No machine is configured; 'cuckoo guest build' makes one, and 'cuckoo machines discover "
    "BACKEND' lists those that a hypervisor has."
)


async def show(arguments: argparse.Namespace, cwd: Path) -> int:
    """A table of the machines as the running server has them now."""
    async with connect(cwd, arguments.url, arguments.token) as client:
        machines = (await client.get("/machines/list"))["machines"]
    if arguments.json:
        print(json.dumps(machines))
        return 0
    if not machines:
        console.print(NO_MACHINE)
        return 0
    table = Table("name", "backend", "state", "lock", "snapshot", "last error")
    for machine in machines:
        lock = f"task {machine['task_id']}" if machine["locked"] else ""
        name, backend, state = (text(machine[key]) for key in ("name", "manager", "status"))
        table.add_row(
            name,
            backend,
            state,
            lock,
            text(machine["snapshot"]),
            text(machine["quarantine"], "red"),
        )
    console.print(table)
    return 0


# -- check --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Proof:
    """What became of one machine: seconds of each step that was done, and what went wrong."""

    name: str
    backend: str
    restored: float | None = None
    agent: float | None = None
    off: float | None = None
    fault: str = ""


async def check(arguments: argparse.Namespace, cwd: Path) -> int:
    """A table of times, and exit code 1 when a machine fails."""
    settings = settings_of(cwd)
    chosen = _chosen(settings, arguments.names)
    with engine_lock(cwd, HELD):
        proofs = await _check_all(settings, chosen)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(proof) for proof in proofs]))
    else:
        table = Table("machine", "backend", "restored", "agent", "off", "result")
        for proof in proofs:
            times = (proof.restored, proof.agent, proof.off)
            table.add_row(
                text(proof.name),
                text(proof.backend),
                *("" if seconds is None else f"{seconds:.2f} s" for seconds in times),
                text(proof.fault, "red") if proof.fault else text("works", "green"),
            )
        console.print(table)
    return 1 if any(proof.fault for proof in proofs) else 0


async def prove_all(settings: Settings) -> list[Proof]:
    """Every configured machine, as :func:`check` does; for a holder of the engine's lock."""
    return await _check_all(settings, _chosen(settings, ()))


def _chosen(settings: Settings, names: Sequence[str]) -> dict[str, list[MachineConfig]]:
    """The machines to check, by machinery; all where none is named."""
    machines = {name: section.machines for name, section in settings.machinery.items()}
    known = [machine.name for section in machines.values() for machine in section]
    if not known:
        raise BadInput(NO_MACHINE)
    if strange := sorted(set(names) - set(known)):
        raise BadInput(f"no machine {', '.join(strange)}; there is: {', '.join(known) or 'none'}")
    return {
        backend: chosen
        for backend, section in machines.items()
        if (chosen := [machine for machine in section if not names or machine.name in names])
    }


async def _check_all(settings: Settings, chosen: Mapping[str, list[MachineConfig]]) -> list[Proof]:
    proofs: list[Proof] = []
    good: list[Seen] = []
    async with opened(settings, list(chosen)) as hypervisors:
        for hypervisor, fault in hypervisors:
            known: list[str] = []
            if not fault:
                try:
                    known = await hypervisor.labels()
                except MachineryError as exc:
                    fault = str(exc)
            for machine in chosen[hypervisor.name]:
                proof = Proof(machine.name, hypervisor.name, fault=fault)
                proofs.append(proof)
                if not fault:
                    with complaints.status(f"{machine.name}: restoring, reaching, stopping"):
                        await _prove(proof, hypervisor, machine, known, good, settings)
    return proofs


async def _prove(
    proof: Proof,
    hypervisor: Hypervisor,
    machine: MachineConfig,
    known: list[str],
    good: list[Seen],
    settings: Settings,
) -> None:
    """Do what an analysis does with its machine; what is known to be wrong is not tried."""
    try:
        seen = await look(hypervisor, machine, known)
        if found := faults(seen, good):
            proof.fault = "; ".join(found)
            return
        good.append(seen)
        clock = _stopwatch()
        try:
            await hypervisor.restore_and_start(machine.label, machine.snapshot)
            proof.restored = clock()
            await wait_for_agent(hypervisor, machine, settings.timeouts.agent)
            proof.agent = clock()
        finally:
            clock()
            # a start that failed may be carried out later all the same
            given_up = proof.restored is None
            await to_the_end(hypervisor.ensure_off(machine.label, even_if_off=given_up))
            proof.off = clock()
    except (MachineryError, GuestError) as exc:
        proof.fault = str(exc)


async def wait_for_agent(hypervisor: Hypervisor, machine: MachineConfig, timeout: float) -> None:
    """Until the guest's agent answers; GuestError."""
    async with GuestClient(hypervisor.address(machine).agent) as client:
        await client.wait_ready(timeout)


def _stopwatch() -> Callable[[], float]:
    """Seconds since it was last read, or made."""
    before = time.monotonic()

    def read() -> float:
        nonlocal before
        since, before = before, time.monotonic()
        return before - since

    return read


# -- discover -----------------------------------------------------------------------------------


async def discover(arguments: argparse.Namespace, cwd: Path) -> int:
    """What a hypervisor has, as sections for its configuration file."""
    name = arguments.backend
    if name not in (plugins := load_plugins()):
        raise BadInput(
            f"no plugin for {name!r} is installed; there is: {', '.join(sorted(plugins)) or 'none'}"
        )
    settings = settings_of(cwd, machinery=(name,))
    with engine_lock(cwd, HELD), complaints.status(f"{name}: asking for its machines"):
        async with opened(settings, [name]) as [(hypervisor, fault)]:
            if fault:
                raise Unavailable(fault)
            found = await _find_all(hypervisor)
    configured = {m.label: m.name for m in settings.machinery[name].machines}
    if arguments.json:
        answer = [one.as_json() | {"configured": one.label in configured} for one in found]
        print(json.dumps(answer))
    else:
        print(conf(name, found, configured), end="")
    return 0


async def _find_all(hypervisor: Hypervisor) -> list[Found]:
    async def find(label: str) -> Found:
        if Capability.INSPECT not in hypervisor.capabilities:
            return Found(label, None)
        try:
            return Found(label, await hypervisor.inspect(label))
        except MachineryError as exc:
            return Found(label, None, str(exc))

    try:
        labels = sorted(await hypervisor.labels())
    except MachineryError as exc:
        raise Unavailable(str(exc)) from exc
    return list(await asyncio.gather(*map(find, labels)))


# -- the hypervisors ----------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    settings: Settings, names: Sequence[str]
) -> AsyncIterator[list[tuple[Hypervisor, str]]]:
    """These machineries, each open, or with what kept it from opening; closed at the end."""
    plugins = load_plugins()
    deadlines = Deadlines.of(settings.timeouts)
    hypervisors = [
        Hypervisor(plugins[config.name], config, deadlines)
        for config in backend_configs(settings, plugins, rooter_taps)
        if config.name in names
    ]
    try:
        yield [(hypervisor, await _open(hypervisor)) for hypervisor in hypervisors]
    finally:
        for hypervisor in hypervisors:
            await hypervisor.close()


async def _open(hypervisor: Hypervisor) -> str:
    try:
        await hypervisor.open()
    except MachineryError as exc:
        return f"{hypervisor.name} cannot be used: {exc}"
    return ""
