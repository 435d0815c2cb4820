"""One analysis, read from top to bottom.

Each step that must be undone puts its undoing on one exit stack, so that whatever fails, and
wherever it is cancelled, the machine is switched off and the guest's connections are closed.
"""

from __future__ import annotations

import asyncio
import enum
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from cuckoo_api.analysis import reboot, tasklog
from cuckoo_api.analysis.meter import Meter
from cuckoo_api.analysis.screenshots import take_screenshots
from cuckoo_api.artefacts import AnalysisFolder, Artefacts
from cuckoo_api.fleet import Lease
from cuckoo_api.guest import GuestClient, GuestError, GuestJob, analyzer_zip
from cuckoo_api.machinery import Capability, MachineryError, MachineState, StateChange
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.sample import Sample
from cuckoo_api.model.task import Guest, now_text
from cuckoo_api.network import Sinkhole, capture
from cuckoo_api.network.routing import Router
from cuckoo_api.results import ResultServer, ResultSession
from cuckoo_api.settings import Settings
from cuckoo_api.store import Store

log = structlog.get_logger()

LAST_WORDS = 5.0
"""Seconds that a guest which said it is done gets to deliver what it sent."""
EVENT_LAG = 1.0
"""Seconds by which the event of a machine that died may be behind the broken connection."""


class InfrastructureFault(Exception):
    """The machine, not the sample, failed: another one should try."""


class RouteLost(CuckooError):
    """Who leads guests by their routes has gone. The machine is not to blame."""


class Ending(enum.StrEnum):
    """How the guest's part of an analysis came to its end; each is the sample's own doing."""

    COMPLETE = "complete"
    TIMEOUT = "timeout"
    FAILED = "failed"
    SHUTDOWN = "shutdown"
    """The guest switched itself off."""
    LOST = "lost"
    """The agent stopped answering."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every analysis needs; made once by the server."""

    settings: Settings
    store: Store
    artefacts: Artefacts
    results: ResultServer
    sinkhole: Sinkhole | None
    meter: Meter = field(default_factory=Meter)
    router: Router = field(default_factory=Router)


async def run_analysis(workshop: Workshop, lease: Lease) -> list[str]:
    """Take a leased machine and leave a folder of results, with the machine switched off.

    Returns what should stand in the task's errors. Raises InfrastructureFault when the machine
    or its hypervisor failed before the sample had its time.
    """
    settings, task, machine = workshop.settings, lease.task, lease.machine
    folder = workshop.artefacts.analysis(task.id)
    errors: list[str] = []
    guest = Guest(
        name=machine.name, label=machine.label, manager=machine.manager, status="starting"
    )
    async with AsyncExitStack() as undo:
        sha256 = task.sample.sha256 if isinstance(task.sample, Sample) else ""
        sample = workshop.artefacts.binary(sha256) if sha256 else None
        await folder.create(msgspec.json.encode(task), sha256)
        tasklog.keep_in(folder.path)
        session = await undo.enter_async_context(
            workshop.results.session(
                task.id,
                folder.path,
                ip=machine.ip,
                socket=lease.address.sockets.get("results"),
            )
        )
        route = workshop.router.choose(task.options.get("route", ""))
        unled = await undo.enter_async_context(
            workshop.router.session(
                route,
                machine.ip,
                machine.interface or "",
                is_reachable=not lease.address.sockets,
            )
        )
        await workshop.store.tasks.set_route(task.id, route)
        guest = msgspec.structs.replace(guest, exit_address=workshop.router.exit_address(route))
        if workshop.sinkhole is not None:
            await undo.enter_async_context(
                workshop.sinkhole.session(lease.address.sockets, lease.address.resultserver_ip)
            )

        lap = workshop.meter.laps()
        try:
            await lease.restore_and_start()
        except MachineryError as exc:
            raise InfrastructureFault(f"{machine.name}: {exc}") from exc
        lap("restore")
        guest = msgspec.structs.replace(guest, started_on=now_text(), status="running")
        undo.push_async_callback(_switch_off, workshop.store, lease, guest)
        client = await undo.enter_async_context(GuestClient(lease.address.agent))
        ready = asyncio.create_task(_wait_for_the_agent(client, lease, settings.timeouts.agent))
        undo.push_async_callback(_stop, ready)
        await workshop.store.tasks.set_guest(task.id, guest)
        errors += await undo.enter_async_context(
            capture(lease, folder.pcap, machine.interface or "", machine.ip)
        )
        try:
            await ready
            if task.package == reboot.PACKAGE:
                parent = workshop.artefacts.analysis(reboot.parent_of(task))
                errors += await reboot.restart_with(
                    lease, client, parent, settings.timeouts.agent, into=folder.path
                )
                sample = None  # it starts by itself, or it did not persist
            seconds = task.timeout or settings.timeouts.default
            await client.start(
                GuestJob(
                    task=task,
                    sample=sample,
                    analyzer=await asyncio.to_thread(
                        analyzer_zip, machine.platform, settings.cwd, settings.storage / "cache"
                    ),
                    resultserver_ip=lease.address.resultserver_ip,
                    resultserver_port=lease.address.resultserver_port,
                    timeout=seconds,
                )
            )
        except (GuestError, MachineryError) as exc:
            raise InfrastructureFault(f"{machine.name}: {exc}") from exc
        lap("agent")
        log.info("analysis.started", machine=machine.name)

        shots = asyncio.create_task(take_screenshots(lease, folder, workshop.artefacts))
        undo.push_async_callback(_stop, shots)
        ending, reason = await _wait_for_the_end(
            client, lease, session, seconds + settings.timeouts.critical, unled
        )
        if complaint := workshop.router.complaint(route):
            errors.append(complaint)
        lap("run")
        log.info("analysis.ended", ending=ending.value, reason=reason)
        if ending is Ending.COMPLETE:
            await session.wait_idle(LAST_WORDS)  # what the guest sent may still be on its way
        else:
            errors.append(reason)
        if task.memory or settings.cuckoo.memory_dump:
            errors += await _dump_memory(lease, folder)
    return errors + session.errors


async def _wait_for_the_agent(client: GuestClient, lease: Lease, seconds: float) -> None:
    """Until it answers; no longer than there is a machine for it to run on."""
    ready = asyncio.create_task(client.wait_ready(seconds))
    stopped = asyncio.create_task(lease.wait_stopped())
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise _stopped_early(lease, stopped.result(), "before its agent answered")
        ready.result()
    finally:
        await _stop(ready)
        await _stop(stopped)


async def _wait_for_the_end(
    client: GuestClient,
    lease: Lease,
    session: ResultSession,
    seconds: float,
    unled: asyncio.Event,
) -> tuple[Ending, str]:
    """Until the guest says so, its machine stops, or its time is over; whichever comes first.

    ``unled`` is set when nobody keeps its route any more, which is the infrastructure's fault.
    """
    told = asyncio.create_task(client.wait(seconds, session.log_closed))
    stopped = asyncio.create_task(lease.wait_stopped())
    lost = asyncio.create_task(unled.wait())
    try:
        await asyncio.wait({told, stopped, lost}, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            raise RouteLost("The rooter went away in the middle of the analysis")
        if not stopped.done():
            outcome = told.result()
            if outcome.state == "lost":
                await asyncio.wait({stopped}, timeout=EVENT_LAG)
        if stopped.done():
            change = stopped.result()
            if change.state is MachineState.POWEROFF:
                return Ending.SHUTDOWN, "The guest switched itself off"
            raise _stopped_early(lease, change, "in the middle of the analysis")
    finally:
        await _stop(told)
        await _stop(stopped)
        await _stop(lost)
    match outcome.state:
        case "complete":
            return Ending.COMPLETE, outcome.description
        case "timeout":
            return Ending.TIMEOUT, (
                f"The analysis hit the critical timeout after {seconds:.0f} s, terminating."
            )
        case "lost":
            return Ending.LOST, f"The guest's agent stopped answering: {outcome.description}"
        case _:
            return Ending.FAILED, f"The guest's analyzer failed: {outcome.description}"


def _stopped_early(lease: Lease, change: StateChange, when: str) -> InfrastructureFault:
    text = f"{lease.machine.name}: {change.state.value} {when}. {change.reason}"
    return InfrastructureFault(text.strip())


async def _switch_off(store: Store, lease: Lease, guest: Guest) -> None:
    """Cut the power. A machine that cannot be switched off is the lease's release to judge."""
    try:
        await lease.power_off()
    except MachineryError as exc:
        log.warning("analysis.power_off_failed", machine=lease.machine.name, error=str(exc))
    await store.tasks.set_guest(
        lease.task.id,
        msgspec.structs.replace(guest, shutdown_on=now_text(), status="stopped"),
    )


async def _dump_memory(lease: Lease, folder: AnalysisFolder) -> list[str]:
    if not lease.capabilities & Capability.MEMORY_DUMP:
        return [f"{lease.machine.manager} cannot dump a machine's memory"]
    path: Path = folder.path / "memory.dmp"
    try:
        await lease.dump_memory(path)
    except MachineryError as exc:
        return [f"No full memory dump: {exc}"]
    return []


async def _stop(task: asyncio.Task[object]) -> None:
    """Cancel a task of ours and wait for it; what it raised is no longer of interest."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # else it would be logged as never looked at
