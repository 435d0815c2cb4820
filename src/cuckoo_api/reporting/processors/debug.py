"""``debug``: what the analyzer and the server logged. The errors are added when all is done."""

from __future__ import annotations

from typing import Any

from cuckoo_api.reporting.bounds import Notes, clip, printable
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job

MAX_BYTES = 4 << 20
MAX_LINES = 5_000
MAX_LINE = 2_000


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """The report's ``debug`` without its ``errors``."""
    return {
        "log": _lines(evidence, "analysis.log", notes),
        "cuckoo": _lines(evidence, "cuckoo.log", notes),
        "action": [],
    }


def _lines(evidence: Evidence, name: str, notes: Notes) -> list[str]:
    data = evidence.read(name, MAX_BYTES)
    lines = data.splitlines(keepends=False)
    if len(lines) > MAX_LINES or len(data) >= MAX_BYTES:
        notes.cut(name, MAX_LINES)
    return [clip(printable(line), MAX_LINE) for line in lines[:MAX_LINES]]
