"""From start to stop: one context, one exit stack. What was opened last is closed first."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web

from cuckoo_api.analysis.disk import DiskRoom
from cuckoo_api.analysis.doorbell import Doorbell
from cuckoo_api.analysis.events import Feed
from cuckoo_api.analysis.meter import Meter
from cuckoo_api.analysis.recovery import recover
from cuckoo_api.analysis.retention import Retention
from cuckoo_api.analysis.run import Workshop
from cuckoo_api.analysis.scheduler import Scheduler
from cuckoo_api.analysis.service import AnalysisService
from cuckoo_api.analysis.vpnevents import VpnEvents
from cuckoo_api.analysis.webhooks import Webhooks
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.confinement import confinement
from cuckoo_api.fleet import Fleet, load_plugins
from cuckoo_api.http.access import ACCESS
from cuckoo_api.http.keys import SERVICE, SETTINGS, SWITCH
from cuckoo_api.http.metrics import METRICS
from cuckoo_api.machinery import MachineryPlugin
from cuckoo_api.network import Sinkhole
from cuckoo_api.network.rooter.client import RooterClient
from cuckoo_api.network.rooter.commands import Service
from cuckoo_api.network.rooter.taps import rooter_taps
from cuckoo_api.network.routing import Router
from cuckoo_api.network.vpn import Monitor
from cuckoo_api.results import ResultServer
from cuckoo_api.server.lock import engine_lock, engine_pid
from cuckoo_api.server.reload import Part, Reloader
from cuckoo_api.settings import Settings, load_settings
from cuckoo_api.store import Store

log = structlog.get_logger()


@asynccontextmanager
async def lifespan(
    app: web.Application,
    *,
    plugins: Sequence[object],
    engine: bool,
    reread: Callable[[], Settings] | None = None,
) -> AsyncIterator[None]:
    """Open everything, give the application its service, and close everything again.

    A second cleanup context would not be torn down by aiohttp when a later one fails to start:
    hence this single one.
    """
    settings = app[SETTINGS]
    installed = load_plugins(plugins)
    parts: list[Part] = []
    for warning in settings.warnings:
        log.warning("settings", warning=warning)
    for layer in confinement():
        if not layer.holds:  # here, which a unit's filter of system calls may make another place
            log.warning("confinement.missing", layer=layer.name, advice=layer.detail)
    async with AsyncExitStack() as stack:
        if engine:
            stack.enter_context(engine_lock(settings.cwd, is_server=True))
        store = await Store.open(settings.database_url, timeout=settings.database.timeout)
        stack.push_async_callback(store.close)
        artefacts = Artefacts(settings.storage)
        stack.push_async_callback(artefacts.close)
        await artefacts.open()
        bell = Doorbell(settings.cwd)
        stack.callback(bell.close)
        feed = Feed(store, ring=bell.ring)
        rooter = RooterClient(settings.network.socket)
        stack.push_async_callback(rooter.close)
        monitor = Monitor(settings.vpns, rooter)
        stack.push_async_callback(monitor.close)
        fleet: Fleet | None = None
        disk: DiskRoom | None = None
        wake: Callable[[], None] = feed.wake  # the event of what was submitted rings the engine
        if engine:
            meter = Meter(app[METRICS].registry)
            router = Router(settings.network, rooter, monitor)
            fleet, scheduler, parts = await _open_engine(
                stack, settings, store, artefacts, installed, meter, router
            )
            app[SWITCH].drain = scheduler.drain
            teller = VpnEvents(store, wake=scheduler.wake)
            stack.push_async_callback(teller.close)
            monitor.on_change = teller.tell
            monitor.on_rooter_back = scheduler.wake
            monitor.open()
            wake, disk = scheduler.wake, scheduler.disk
            webhooks = Webhooks(settings.webhooks, store, in_hand=scheduler.has_in_hand)
            stack.push_async_callback(webhooks.close)
            scheduler.on_let_go = feed.also = webhooks.wake
            await webhooks.open()
            parts.append(lambda new: webhooks.reconfigure(new.webhooks))

        def on_ring() -> None:
            feed.wake()
            wake()

        bell.open(on_ring, engine=engine)
        on_ring()  # who rang earlier was not heard
        service = app[SERVICE] = AnalysisService(
            settings,
            store,
            artefacts,
            on_submitted=wake,
            fleet=fleet,
            processes=lambda: processes(settings.cwd, engine=engine),
            events=feed,
            disk=disk,
            monitor=monitor,
        )

        async def tell_the_rest(new: Settings) -> None:
            service.reconfigure(new)
            app[ACCESS].reconfigure(new)
            monitor.reconfigure(new.vpns)

        reloader = Reloader(
            settings,
            reread or (lambda: load_settings(settings.cwd, list(installed.values()))),
            [*parts, tell_the_rest],
        )
        stack.push_async_callback(reloader.close)
        reloader.around = app[SWITCH].reloading
        reloader.open()
        app[SWITCH].reload = reloader.ask
        yield


def processes(cwd: Path, *, engine: bool) -> dict[str, int]:
    """The pids of this process and of the engine's, where one runs."""
    if engine:
        return {"engine": os.getpid()}
    found = {"api": os.getpid()}
    if (pid := engine_pid(cwd)) is not None:
        found["engine"] = pid
    return found


async def _open_engine(
    stack: AsyncExitStack,
    settings: Settings,
    store: Store,
    artefacts: Artefacts,
    plugins: Mapping[str, MachineryPlugin],
    meter: Meter,
    router: Router,
) -> tuple[Fleet, Scheduler, list[Part]]:
    """What runs analyses, in the order in which each needs the one before."""
    fleet = Fleet(settings, plugins, store, taps_of=rooter_taps)
    stack.push_async_callback(fleet.close)
    await fleet.open()
    await router.guard(_services_of_the_host(settings))

    results = ResultServer(settings.resultserver, on_kept=meter.result_bytes.inc)
    stack.push_async_callback(results.close)

    async def listen_for_new_machines() -> None:
        for fault in await results.also_open(fleet.result_addresses()):
            log.error("results.not_listening", fault=fault)

    fleet.on_opened = listen_for_new_machines  # from here on: what is open now comes next
    addresses = fleet.result_addresses()
    await results.open(addresses)
    sinkhole = await _open_sinkhole(stack, settings, {ip for ip, _ in addresses})

    await fleet.recover()
    await recover(store, artefacts)

    workshop = Workshop(settings, store, artefacts, results, sinkhole, meter, router)
    scheduler = Scheduler(workshop, fleet)
    stack.push_async_callback(scheduler.close)
    scheduler.open()
    retention = Retention(settings.retention, store, artefacts)
    stack.push_async_callback(retention.close)
    retention.open()

    async def reconfigure(new: Settings) -> None:
        results.reconfigure(new.resultserver)
        retention.reconfigure(new.retention)
        scheduler.reconfigure(dataclasses.replace(workshop, settings=new))

    async def reroute(new: Settings) -> None:
        router.reconfigure(new.network)
        await router.guard(_services_of_the_host(new))

    return fleet, scheduler, [fleet.reconfigure, reconfigure, reroute]


def _services_of_the_host(settings: Settings) -> dict[str, list[Service]]:
    """What guests may reach of the host, by their network."""
    found: dict[str, list[Service]] = {}
    for backend in settings.machinery.values():
        for machine in backend.machines:
            ip = machine.resultserver_ip or settings.resultserver.ip
            wanted = [Service("tcp", ip, machine.resultserver_port)]
            if settings.routing.route == "sinkhole":
                dns, http = settings.routing.sinkhole_dns_port, settings.routing.sinkhole_http_port
                wanted += [
                    Service("udp", ip, dns),
                    Service("tcp", ip, dns),
                    Service("tcp", ip, http),
                ]
            services = found.setdefault(machine.interface, [])
            services += [one for one in wanted if one not in services]
    return found


async def _open_sinkhole(
    stack: AsyncExitStack, settings: Settings, addresses: set[str]
) -> Sinkhole | None:
    if settings.routing.route != "sinkhole":
        return None
    sinkhole = Sinkhole()
    stack.push_async_callback(sinkhole.close)
    for ip in sorted(addresses):
        await sinkhole.open(
            ip, settings.routing.sinkhole_dns_port, settings.routing.sinkhole_http_port
        )
    return sinkhole
