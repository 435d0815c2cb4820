"""``/metrics``: what Prometheus reads."""

from __future__ import annotations

import asyncio

import pytest
from eventkit import following
from httpkit import NewSite, Site, machine
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cuckoo_api.analysis.meter import PHASES, Meter
from cuckoo_api.http.metrics import METRICS
from cuckoo_api.model.task import Status

pytestmark = pytest.mark.slow

URL = {"url": "http://example.com/"}
Key = tuple[str, tuple[tuple[str, str], ...]]


async def figures(site: Site) -> dict[Key, float]:
    """Every value by its name and labels."""
    reply = await site.client.get("/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def key(name: str, **labels: str) -> Key:
    return f"cuckoo_{name}", tuple(sorted(labels.items()))


async def test_requests_are_counted_by_route_and_status(site: Site) -> None:
    for path in ("/tasks/view/1", "/v1/tasks/view/2/", "/tasks/view/x", "/healthz"):
        await site.client.get(path)
    await site.client.post("/tasks/create/url", URL)
    found = await figures(site)
    counted = {name: value for name, value in found.items() if name[0].endswith("requests_total")}
    assert counted == {
        key("http_requests_total", method="GET", route="/tasks/view/{task_id}", status="404"): 2,
        key("http_requests_total", method="", route="", status="404"): 1,
        key("http_requests_total", method="GET", route="/healthz", status="200"): 1,
        key("http_requests_total", method="POST", route="/tasks/create/url", status="200"): 1,
    }
    view = {"method": "GET", "route": "/tasks/view/{task_id}"}
    assert found[key("http_request_seconds_count", **view)] == 2
    assert found[key("http_request_seconds_bucket", le="10.0", **view)] == 2
    assert 0 < found[key("http_request_seconds_sum", **view)] < 10


async def test_strange_requests_make_no_new_series(site: Site) -> None:
    for number, method in enumerate(("PUT", "DELETE", "PROPFIND")):
        await site.client.get(f"/no/{number}")
        assert (await site.client.ask(method, "/tasks/list")).status == 405
    found = await figures(site)
    odd = [name for name, labels in found if ("method", "") in labels and name.endswith("total")]
    assert len(odd) == 2  # 404 and 405


async def test_a_refused_request_is_counted_as_it_was_answered(new_site: NewSite) -> None:
    site = await new_site(token="secret")
    refused = await site.client.get("/metrics")
    assert refused.status == 401
    allowed = await site.client.get("/metrics", Authorization="Bearer secret")
    line = 'cuckoo_http_requests_total{method="GET",route="/metrics",status="401"} 1.0'
    assert line in allowed.body.decode().splitlines()


async def test_tasks_are_shown_by_state(site: Site) -> None:
    for _ in range(3):
        await site.client.post("/tasks/create/url", URL)
    await site.client.post("/tasks/cancel/1")
    found = await figures(site)
    assert {status: found[key("tasks", status=status)] for status in Status} == dict.fromkeys(
        Status, 0
    ) | {Status.PENDING: 2, Status.CANCELLED: 1}


async def test_machines_are_shown_by_state_and_quarantine(site: Site) -> None:
    await site.configure(machine("one"), machine("two"), machine("three"))
    for name in ("one", "two"):
        await site.store.machines.set_status(f"{name}-label", "fake", "poweroff")
    await site.store.machines.set_quarantine("two", "no agent")
    await site.client.post("/tasks/create/url", URL)
    await site.store.tasks.claim((await site.store.machines.list())[0])
    found = await figures(site)
    assert found[key("machines", status="poweroff")] == 2
    assert found[key("machines", status="unknown")] == 1
    assert found[key("machines_leased")] == 1
    quarantined = {m: found[key("machine_quarantined", machine=m)] for m in ("one", "two")}
    assert quarantined == {"one": 0, "two": 1}

    await site.configure(machine("one"))  # what is no longer there is no longer shown
    found = await figures(site)
    assert found[key("machines", status="poweroff")] == 1
    assert key("machine_quarantined", machine="two") not in found


async def test_the_time_of_a_stream_is_no_latency(site: Site) -> None:
    async with following(site):
        await site.app.shutdown()
    found = await figures(site)
    assert found[key("http_requests_total", method="GET", route="/events", status="200")] == 1
    assert not [
        name for name, labels in found if "seconds" in name and ("route", "/events") in labels
    ]


async def test_room_and_process_are_shown(site: Site) -> None:
    found = await figures(site)
    assert found[key("storage_free_bytes")] > 0
    assert found["process_resident_memory_bytes", ()] > 0


async def test_prometheus_gets_its_own_format(site: Site) -> None:
    reply = await site.client.get("/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert reply.body.endswith(b"# EOF\n")


async def test_two_applications_count_apart(new_site: NewSite) -> None:
    one = await new_site()
    await asyncio.gather(*(one.client.get("/healthz") for _ in range(3)))
    assert one.app[METRICS].registry is not (await new_site()).app[METRICS].registry


def test_each_phase_is_timed_from_the_end_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([100.0, 103.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    registry = CollectorRegistry()
    lap = Meter(registry).laps()
    lap("restore")
    lap("agent")
    sums = {
        phase: registry.get_sample_value("cuckoo_analysis_phase_seconds_sum", {"phase": phase})
        for phase in PHASES
    }
    assert sums == {"restore": 3, "agent": 7, "run": 0, "report": 0}
