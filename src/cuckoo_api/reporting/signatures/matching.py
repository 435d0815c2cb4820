"""Asks each signature for its evidence, and counts what the answers amount to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from cuckoo_api.reporting.bounds import Notes, clip
from cuckoo_api.reporting.signatures.alarm import time_limit
from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature

MAX_MARKS = 50
MAX_EVIDENCE = 20_000
"""Marks of one signature that are counted."""
SECONDS = 10
"""For one signature."""

WEIGHTS = {1: 0.5, 2: 1.5, 3: 3.0}
"""What a signature counts, by its severity."""
TOP = 10.0


def match_signatures(
    facts: Facts,
    notes: Notes,
    signatures: Sequence[type[Signature]],
    deadline: float = math.inf,
) -> list[dict[str, Any]]:
    """The report's ``signatures``: those that found evidence, the gravest first.

    ``deadline`` is one of the monotonic clock; then the rest is not asked, with a note.
    """
    found: list[dict[str, Any]] = []
    for number, kind in enumerate(signatures):
        left = deadline - time.monotonic()
        if left <= 0:
            notes.add(f"signatures: the time was over; {len(signatures) - number} were not asked")
            break
        try:
            with time_limit(min(left, SECONDS)):
                entry = _entry(kind, _distinct(kind().marks(facts)))
                msgspec.json.encode(entry)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - one must not cost the others
            reason = f"{type(exc).__name__}: {clip(str(exc), 300)}"
            notes.add(f"signature {kind.name}: {reason}")
            continue
        if entry["marks"]:
            found.append(entry)
    return gravest_first(found)


def gravest_first(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the report's order; those of a severity stay as they are."""
    return sorted(found, key=lambda item: -item["severity"])


def score(severities: Iterable[int]) -> float:
    """0 to 10, one decimal: the sum over the signatures that fired, cut at 10.

    Severity 1 counts 0.5, severity 2 counts 1.5, severity 3 counts 3. So one grave signature
    alone is a 3, two suspicious ones are as much, and four grave ones reach the top.
    """
    return round(min(TOP, sum((WEIGHTS.get(each, 0.0) for each in severities), start=0.0)), 1)


class Fired(msgspec.Struct, frozen=True):
    """What the score looks at of a signature that fired."""

    name: str
    severity: int


def scoring(found: Iterable[Fired]) -> list[dict[str, Any]]:
    """The report's ``info.scoring``: what each signature that fired contributed."""
    return [
        {
            "signature": item.name,
            "severity": item.severity,
            "points": WEIGHTS.get(item.severity, 0.0),
        }
        for item in found
    ]


def _entry(kind: type[Signature], marks: list[Mark]) -> dict[str, Any]:
    return {
        "name": kind.name,
        "description": kind.description,
        "severity": kind.severity,
        "ttp": list(kind.ttp),
        "families": list(kind.families),
        "references": list(kind.references) or [_page(technique) for technique in kind.ttp],
        "markcount": len(marks),
        "marks": marks[:MAX_MARKS],
    }


def _page(technique: str) -> str:
    return f"https://attack.mitre.org/techniques/{technique.replace('.', '/')}/"


def _distinct(marks: Iterable[Mark]) -> list[Mark]:
    """Each piece of evidence once for a process: a file that was created was also written."""
    kept = {
        (item["category"], item["ioc"], item["pid"]): item for item in islice(marks, MAX_EVIDENCE)
    }
    return list(kept.values())
