"""docs/monitoring.md, the dashboard and the alert rules know the metrics that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from docskit import codes, page, section, table
from prometheus_client import Metric

from cuckoo_api.analysis.meter import PHASES, Meter
from cuckoo_api.http.metrics import Metrics
from cuckoo_api.http.routes import ROUTES

pytestmark = pytest.mark.slow

PAGE = page("docs/monitoring.md")
ALERTS = page("docs/monitoring/alerts.yml")
DASHBOARD: Any = json.loads(page("docs/monitoring/grafana.json"))


def registered() -> dict[str, Metric]:
    """All metrics by the name that a query uses."""
    metrics = Metrics()
    Meter(metrics.registry)
    suffix = {"counter": "_total", "info": "_info"}
    return {
        metric.name + suffix.get(metric.type, ""): metric for metric in metrics.registry.collect()
    }


def used(text: str) -> set[str]:
    """The metrics in a query, without the endings of a histogram's parts."""
    found = re.findall(r"\b(?:cuckoo|process)_[a-z_]+", text)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


def test_every_metric_is_documented_and_no_other() -> None:
    documented = table(section(PAGE, "Prometheus"))
    own = {name for name in registered() if not name.startswith("process_")}
    assert set(documented) == own
    assert tuple(codes(documented["cuckoo_analysis_phase_seconds"]["Meaning"])) == PHASES


def test_the_documented_labels_are_those_of_the_code() -> None:
    metrics = Metrics()
    for name, row in table(section(PAGE, "Prometheus")).items():
        for collector in (*vars(metrics).values(), *vars(Meter()).values()):
            described = getattr(collector, "_name", "")
            if name.removesuffix("_total") == described:
                assert tuple(codes(row["Labels"])) == collector._labelnames


def test_the_alerts_ask_for_metrics_and_routes_that_exist() -> None:
    rules = re.findall(r"^ +expr:(.*?)^ +(?:for|labels):", ALERTS, re.MULTILINE | re.DOTALL)
    assert len(rules) == ALERTS.count("- alert:")
    for rule in rules:
        assert used(rule) <= set(registered()), rule
        for route in re.findall(r'route="([^"]*)"', rule):
            assert route in {known.path for known in ROUTES}


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    wanted = set().union(*(used(query) for query in queries))
    assert wanted <= set(registered())
    assert {name for name in registered() if name.startswith("cuckoo_")} <= wanted


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
