"""``/metrics``: figures of the server, for Prometheus. One registry for each application."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder

from cuckoo_api import __version__
from cuckoo_api.analysis.service import Load
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.model.task import Status
from cuckoo_api.network.vpn import STATUSES as VPN_STATUSES

PLAIN = "text/plain"
HUNG_UP = "499"
"""The status, as nginx has it, of an answer that its client did not wait for."""
ENDLESS = frozenset({"/events"})
"""Routes whose time says nothing."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """What is measured of requests as they come, and of the rest when it is asked for."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("cuckoo_build", "The server's version", registry=registry).info(
            {"version": __version__}
        )
        self._requests = Counter(
            "cuckoo_http_requests",
            "Requests that were answered",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "cuckoo_http_request_seconds",
            "Time from a request to its answer; of a file, to the beginning of its transfer",
            ["method", "route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._tasks = Gauge("cuckoo_tasks", "Tasks by state", ["status"], registry=registry)
        self._machines = Gauge(
            "cuckoo_machines", "Machines by state", ["status"], registry=registry
        )
        self._leased = Gauge("cuckoo_machines_leased", "Machines in use", registry=registry)
        self._quarantine = Gauge(
            "cuckoo_machine_quarantined",
            "1 for a machine that gets no task",
            ["machine"],
            registry=registry,
        )
        self._vpns = Gauge(
            "cuckoo_vpn_status",
            "1 for the status that a VPN has, 0 for the others",
            ["vpn", "status"],
            registry=registry,
        )
        self._paused = Gauge(
            "cuckoo_analyses_paused",
            "1 while no analysis starts, for want of room",
            registry=registry,
        )
        self._free = Gauge("cuckoo_storage_free_bytes", "Room under storage/", registry=registry)
        # looking a child up by its labels costs more than counting
        self._children: dict[tuple[str, str, int | str], tuple[Counter, Histogram | None]] = {}

    def count(self, request: web.Request, status: int | str, seconds: float) -> None:
        """Note an answer. Addresses and methods that nobody serves are one route together."""
        resource = request.match_info.route.resource
        key = ("", "", status) if resource is None else (request.method, resource.canonical, status)
        if key not in self._children:
            self._children[key] = self._labelled(*key)
        requests, histogram = self._children[key]
        requests.inc()
        if histogram is not None:
            histogram.observe(seconds)

    def _labelled(
        self, method: str, path: str, status: int | str
    ) -> tuple[Counter, Histogram | None]:
        route = path.removeprefix("/v1").rstrip("/")
        timed = None if route in ENDLESS else self._seconds.labels(method, route)
        return self._requests.labels(method, route, str(status)), timed

    def take(self, load: Load) -> None:
        """Set what is true now."""
        for state in Status:
            self._tasks.labels(state.value).set(load.tasks.get(state, 0))
        self._machines.clear()
        self._quarantine.clear()
        for machine in load.machines:
            self._machines.labels(machine.status or "unknown").inc()
            self._quarantine.labels(machine.name).set(machine.quarantine is not None)
        self._vpns.clear()
        for vpn in load.vpns:
            for status in VPN_STATUSES:
                self._vpns.labels(vpn.name, status).set(vpn.status == status)
        self._leased.set(sum(machine.locked for machine in load.machines))
        self._paused.set(load.is_paused)
        self._free.set(load.free_bytes)


METRICS = web.AppKey("metrics", Metrics)


def make_counter(metrics: Metrics) -> Middleware:
    """The middleware that counts; outside of the one that makes errors answers."""

    @web.middleware
    async def counter(request: web.Request, handler: Handler) -> web.StreamResponse:
        begin = time.perf_counter()
        try:
            response = await handler(request)
        except (ConnectionError, asyncio.CancelledError):
            metrics.count(request, HUNG_UP, time.perf_counter() - begin)
            raise
        metrics.count(request, response.status, time.perf_counter() - begin)
        return response

    return counter


async def show(request: web.Request) -> web.StreamResponse:
    """The server's figures, in Prometheus' or OpenMetrics' format."""
    metrics = request.app[METRICS]
    metrics.take(await request.app[SERVICE].load())
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})
