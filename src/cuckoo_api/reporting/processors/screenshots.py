"""``screenshots``: the pictures, by name."""

from __future__ import annotations

import re
from typing import Any

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job

MAX_SHOTS = 1_000

_SHOT = re.compile(r"[0-9]{1,8}\.jpg", re.ASCII)


def run(evidence: Evidence, job: Job, notes: Notes) -> list[dict[str, Any]]:
    """The report's ``screenshots``: ``{"path": "shots/0001.jpg", "ocr": ""}``."""
    names = (name for name in evidence.names("shots") if _SHOT.fullmatch(name))
    return [
        {"path": f"shots/{name}", "ocr": ""}
        for name in take(names, MAX_SHOTS, notes, "screenshots")
    ]
