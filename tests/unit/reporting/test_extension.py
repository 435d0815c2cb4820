"""Parts and formats that a stranger's package brings, made by the real worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.model.task import Task
from cuckoo_api.reporting.extension import extensions
from cuckoo_api.reporting.service import make_report
from cuckoo_api.settings import ProcessingSection

pytestmark = pytest.mark.slow

TASK = Task(id=7, category="file", target="/x/sample.sh", added_on="2026-01-01 00:00:00")
WORKER = (
    "import sys; sys.path.insert(0, {0!r}); from cuckoo_api.reporting.worker import main; main()"
)

POINTS = """
[cuckoo_api.processors]
lines = more_reports:lines
broken = more_reports:broken
target = more_reports:lines
gone = more_reports.gone
huge = more_reports:huge

[cuckoo_api.reporters]
csv = more_reports:csv
half = more_reports:half
deadly = more_reports:deadly
json = more_reports:csv
Not.Good = more_reports:csv
"""
MODULE = """
import os
import socket


def lines(evidence, job, notes):
    with evidence.sample() as source:
        found = source.read(1 << 20).count(b"\\n")
    notes.add("lines: they were counted")
    return {"lines": found, "of": job.name}


def broken(evidence, job, notes):
    socket.socket()


def huge(evidence, job, notes):
    return "x" * (65 << 20)


def csv(report, file):
    file.write(b"key,value\\n")
    file.write(f"id,{report.info['id']}\\nlines,{report.part('lines')['lines']}\\n".encode())
    file.write(f"strings,{len(report.part('strings'))}\\nerrors,{len(report.errors)}\\n".encode())
    file.write(f"signatures,{report.part('signatures')}\\n".encode())
    file.write(f"no part,{report.part('../x')}\\n".encode())


def half(report, file):
    file.write(b"the first half")
    raise ValueError("no more")


def deadly(report, file):
    os.abort()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package; in this process for the names, in the worker for all else."""
    site = tmp_path / "site-packages"
    metadata = site / "more_reports-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: more-reports\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(POINTS)
    (site / "more_reports.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(site))
    yield site
    assert "more_reports" not in sys.modules  # only a worker loads it


def test_only_names_that_fit_are_formats(package: Path) -> None:
    assert extensions().files == ("csv", "deadly", "half")
    assert set(extensions().keys) == {"lines", "broken", "gone", "huge"}
    steps = extensions().steps
    assert steps.index("metadata") < steps.index("processor lines") < steps.index("yara")
    assert steps.index("html") < steps.index("reporter csv") < steps.index("report")


async def test_a_package_adds_parts_and_formats_and_what_fails_costs_itself_only(
    folder: Path, sample: Callable[[bytes], None], tmp_path: Path, package: Path
) -> None:
    sample(b"#!/bin/sh\necho hello\n")
    reports = folder / "reports"
    for stale in ("half", "deadly"):
        (reports / f"report.{stale}").write_text("of an earlier report")
    said = await make_report(
        folder, TASK, None, ProcessingSection(), tmp_path,
        worker=(sys.executable, "-c", WORKER.format(str(package))),
    )  # fmt: skip
    report: dict[str, Any] = json.loads((reports / "report.json").read_bytes())
    assert report["lines"] == {"lines": 2, "of": "sample.sh"}
    assert report["broken"] is report["gone"] is report["huge"] is None
    # what is the server's own stays its own
    assert report["target"]["file"]["size"] == 21
    errors = {error.partition(": ")[0]: error.partition(": ")[2] for error in said}
    assert errors.pop("processor broken").startswith("PermissionError")
    assert errors.pop("processor gone").startswith("ModuleNotFoundError")
    assert errors.pop("processor huge") == "Unusable: it made more than 64 MiB"
    assert "taken by the server" in errors.pop("processor target")
    assert "taken by the server" in errors.pop("reporter json")
    assert "allowed: small letters" in errors.pop("reporter Not.Good")
    assert errors.pop("reporter half") == "ValueError: no more"
    assert errors.pop("reporter deadly").startswith("the worker was ended by SIGABRT")
    assert errors == {}
    assert {"reporter half: ValueError: no more", "lines: they were counted"} <= set(
        report["debug"]["errors"]
    )
    rows = dict(row.split(",", 1) for row in (reports / "report.csv").read_text().splitlines())
    assert (rows["id"], rows["lines"], rows["strings"]) == ("7", "2", "2")
    assert (rows["signatures"], rows["no part"]) == ("[]", "None")
    assert sorted(path.name for path in reports.iterdir()) == [
        "report.csv",
        "report.html",
        "report.json",
    ]
