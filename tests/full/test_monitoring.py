"""docs/monitoring.md with the real Prometheus: what it asks, what it is told, and its alerts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from serverkit import Namespace, run

from cuckoo_api.fleet import load_plugins
from cuckoo_api.settings import init_cwd
from netkit import until
from pagekit import ROOT, steps

ALERTS = ROOT / "docs" / "monitoring" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "docs" / "monitoring" / "grafana.json").read_text())
FAST = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
SILENT = {"Machines in quarantine", "Machines by state", "VPNs by state"}
"""Panels with a line that shows nothing of a server without machines and VPNs."""

TASKS = 'cuckoo_tasks{instance="one",status="%s"}'
QUARANTINED = 'cuckoo_machine_quarantined{instance="one",machine="%s"}'
ERRORS = 'cuckoo_http_requests_total{instance="one",method="GET",route="/files/get",status="500"}'
SHOWN = 'cuckoo_http_request_seconds_bucket{instance="one",route="/tasks/view/{task_id}",le="%s"}'
LEASED = 'cuckoo_machines_leased{instance="one"}'
VPN = 'cuckoo_vpn_status{instance="one",status="up",vpn="vpn0"}'
MACHINE = ({"machine": "a"}, "a gets no task; /machines/view/a says why")
WELL = {
    'up{instance="one",job="cuckoo"}': "1", ERRORS: "0", SHOWN % "0.5": "0+9", SHOWN % "1": "0+9",
    SHOWN % "+Inf": "0+9", TASKS % "pending": "2", TASKS % "completed": "1",
    TASKS % "failed_analysis": "7", LEASED: "1",
    QUARANTINED % "a": "0", QUARANTINED % "b": "0", 'cuckoo_analyses_paused{instance="one"}': "0",
    VPN: "1", 'cuckoo_storage_free_bytes{instance="one"}': "100e9",
}  # fmt: skip
"""What is told of a server: at first, and how much more each minute."""
TROUBLES: dict[str, tuple[dict[str, str], dict[str, tuple[dict[str, str], str]]]] = {
    "nothing": ({}, {}),
    "down": (
        {'up{instance="one",job="cuckoo"}': "0"},
        {"CuckooDown": ({"job": "cuckoo"}, "one does not answer")},
    ),
    "errors": (
        {ERRORS: "0+30"},
        {
            "CuckooErrors": (
                {"route": "/files/get"},
                "one fails requests to /files/get; its log says why",
            )
        },
    ),
    "slow": (
        {SHOWN % "0.5": "0"},
        {"CuckooSlow": ({}, "one takes over half a second to show a task")},
    ),
    "one of two machines": ({QUARANTINED % "a": "1"}, {"CuckooMachineQuarantined": MACHINE}),
    "the only machine": (
        {QUARANTINED % "a": "1", QUARANTINED % "b": "_"},
        {
            "CuckooMachineQuarantined": MACHINE,
            "CuckooNoMachine": ({}, "every machine of one is in quarantine"),
        },
    ),
    "no machine works": (
        {LEASED: "0"},
        {"CuckooQueueStuck": ({"status": "pending"}, "tasks wait at one and no machine works")},
    ),
    "a long queue": (
        {TASKS % "pending": "501"},
        {"CuckooQueueLong": ({"status": "pending"}, "501 tasks wait at one")},
    ),
    "no reports": (
        {TASKS % "completed": "21"},
        {
            "CuckooReportsStuck": (
                {"status": "completed"},
                "21 analyses of one wait for their reports",
            )
        },
    ),
    "failures": (
        {TASKS % "failed_analysis": "7+1"},
        {"CuckooAnalysesFail": ({}, "60 tasks of one failed within an hour")},
    ),
    "a vpn": (
        {VPN: "0"},
        {
            "CuckooVpnNotUp": (
                {"status": "up", "vpn": "vpn0"},
                "vpn0 of one is not up: tasks with this route fail or wait",
            )
        },
    ),
    "no room": (
        {'cuckoo_analyses_paused{instance="one"}': "1"},
        {"CuckooPaused": ({}, "one starts no analysis: its disk is nearly full")},
    ),
    "little room": (
        {'cuckoo_storage_free_bytes{instance="one"}': "9e9"},
        {"CuckooDiskFull": ({}, "under 10 GiB are free under storage/ of one")},
    ),
}
"""What is the matter, and each alert that there is then: its labels, and what it says."""


def configuration(page: str, folder: Path) -> Path:
    """The page's, with the alerts and the token in this folder, and quick."""
    [text] = [step.text for step in steps(page) if step.title.endswith("prometheus.yml")]
    (folder / "alerts.yml").write_text(ALERTS.read_text())
    (folder / "cuckoo.token").touch()
    path = folder / "prometheus.yml"
    path.write_text(FAST + text.replace("/etc/prometheus/", f"{folder}/"))
    return path


@pytest.mark.parametrize("page", ["docs/monitoring.md", "docs/deployment.md"])
def test_prometheus_takes_the_configuration(page: str, tmp_path: Path) -> None:
    said = run("promtool", "check", "config", str(configuration(page, tmp_path)))
    assert f"{ALERTS.read_text().count('- alert:')} rules found" in said


def test_each_alert_tells_of_its_trouble_and_of_no_other(tmp_path: Path) -> None:
    rules = ALERTS.read_text()
    severities = dict(re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", rules, re.DOTALL))
    assert set(severities) == {name for _, told in TROUBLES.values() for name in told}

    def expected(name: str, told: dict[str, tuple[dict[str, str], str]]) -> dict[str, Any]:
        alerts = []
        if name in told:
            labels, summary = told[name]
            labels = {"instance": "one", "severity": severities[name]} | labels
            alerts = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]
        return {"alertname": name, "eval_time": "80m", "exp_alerts": alerts}

    scenarios = [
        {
            "interval": "1m",
            "input_series": [
                {"series": series, "values": f"{value}{'' if '+' in value else '+0'}x90"}
                for series, value in (WELL | changes).items()
                if value != "_"
            ],
            "alert_rule_test": [expected(name, told) for name in severities],
        }
        for changes, told in TROUBLES.values()
    ]
    (tmp_path / "alerts.yml").write_text(rules)
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": ["alerts.yml"], "tests": scenarios}))
    run("promtool", "test", "rules", str(path))


Asked = Callable[..., Any]


@pytest.fixture
def server(namespace: Namespace, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server without machines at the documented address, whose token Prometheus has."""
    cuckoo = namespace.inside(sys.executable, "-m", "cuckoo_api", "--cwd", str(tmp_path / "cwd"))
    init_cwd(tmp_path / "cwd", list(load_plugins().values()))
    token = run(*cuckoo, "token", "add", "prometheus", "--rights", "read")
    configuration("docs/monitoring.md", tmp_path)
    (tmp_path / "cuckoo.token").write_text(token)
    with (tmp_path / "server.log").open("wb") as log:
        started = subprocess.Popen([*cuckoo, "api"], stdout=subprocess.PIPE, stderr=log, text=True)
    with started:
        assert started.stdout is not None
        assert "listens on" in started.stdout.readline()
        yield started
        started.terminate()


@pytest.fixture
def ask(namespace: Namespace, server: object, tmp_path: Path) -> Iterator[Asked]:
    """Ask the real Prometheus, which asks the server each second: ``ask(path, query)``."""
    with (tmp_path / "prometheus.log").open("wb") as log:
        started = subprocess.Popen(
            namespace.inside(
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'figures'}",
                "--web.listen-address=127.0.0.1:9090",
            ),
            stderr=log,
        )

    def ask(path: str, query: str = "") -> Any:
        curl = ("curl", "-s", "-G", "--retry-connrefused", "--retry", "30", "--retry-delay", "1")
        url = f"http://127.0.0.1:9090/api/v1/{path}"
        said = json.loads(run(*namespace.inside(*curl, url, "--data-urlencode", f"query={query}")))
        assert said["status"] == "success", said
        return said["data"]

    yield ask
    started.terminate()
    started.wait()


def test_prometheus_has_the_figures_and_tells_of_a_server_that_is_gone(
    ask: Asked, server: subprocess.Popen[str]
) -> None:
    def target() -> Any:
        found = ask("targets")["activeTargets"]
        return [one for one in found if one["health"] != "unknown"]

    [seen] = until(target, "a first answer", 20)
    assert (seen["health"], seen["lastError"]) == ("up", "")
    assert seen["scrapeUrl"] == "http://127.0.0.1:8090/metrics"
    # a rate takes two answers
    asked = 'rate(cuckoo_http_requests_total{route="/metrics",status="200"}[1m]) > 0'
    until(lambda: ask("query", asked)["result"], "how often it was asked")
    [build] = ask("query", "cuckoo_build_info")["result"]
    assert build["metric"]["version"] == version("cuckoo-api-server")

    empty = set()
    for panel in DASHBOARD["panels"]:
        for line in panel["targets"]:
            query = line["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            if not ask("query", query)["result"]:
                empty.add(panel["title"])
    assert empty == SILENT

    server.send_signal(signal.SIGTERM)
    gone = 'ALERTS{alertname="CuckooDown",instance="127.0.0.1:8090",severity="critical"}'
    [alert] = until(lambda: ask("query", gone)["result"], "the alert")
    assert alert["metric"]["alertstate"] == "pending", "it fires when that lasts"
    [rules] = ask("rules")["groups"]
    assert {rule["health"] for rule in rules["rules"]} == {"ok"}
