"""The step that judges: what the other parts amount to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.processors.trace.autostart import restart_of
from cuckoo_api.reporting.sections import SIGNATURES as PART
from cuckoo_api.reporting.sections import empty
from cuckoo_api.reporting.signatures.base import Facts
from cuckoo_api.reporting.signatures.builtin import SIGNATURES
from cuckoo_api.reporting.signatures.loading import load_signatures
from cuckoo_api.reporting.signatures.matching import gravest_first, match_signatures

SHARE = 0.8
"""Of the step's time: what is left is for writing down what was found until then."""
LOOKED_AT = ("static", "behavior", "network", "dropped", "procmemory")


def judge(request: Request, parts: Parts, notes: Notes) -> None:
    """Make ``signatures``: first by the package's own, so that these stand whatever others do."""
    facts = facts_of(request, parts)
    if restart_of(Evidence(Path(request.folder), request.size_limit)):
        facts = planted_only(facts)
    deadline = time.monotonic() + request.seconds * SHARE
    found = match_signatures(facts, notes, SIGNATURES, deadline)
    parts.keep(PART, found)
    others = load_signatures(Path(request.cwd), SIGNATURES, notes)
    if others:
        parts.keep(PART, gravest_first([*found, *match_signatures(facts, notes, others, deadline)]))


def planted_only(facts: Facts) -> Facts:
    """What the sample's own did after a restart: all else is the guest's everyday business.

    Where the processes are not marked, on Windows, that is all that there is.
    """
    if not any(process.autostart for process in facts.behavior.generic):
        return facts
    generic = [p for p in facts.behavior.generic if p.autostart and p.autostart.get("restored")]
    pids = {str(process.pid) for process in generic}
    summary: dict[str, list[Any]] = {}
    for process in generic:
        for category, values in process.summary.items():
            summary.setdefault(category, []).extend(values)
    apistats = {pid: counts for pid, counts in facts.behavior.apistats.items() if pid in pids}
    behavior = msgspec.structs.replace(
        facts.behavior, generic=generic, summary=summary, apistats=apistats
    )
    return msgspec.structs.replace(facts, behavior=behavior)


def facts_of(request: Request, parts: Parts) -> Facts:
    """What the signatures look at; a part that failed is empty."""
    target = parts.read("target") or empty("target", request.job)
    head = {
        "category": request.job.category,
        "target": request.job.target,
        "file": target.get("file", {}),
    }
    # the others are JSON as it lies on the disk: what no signature needs is never decoded
    rest = b",".join(
        b'"%s":%s' % (name.encode(), parts.raw(name, empty(name, request.job)))
        for name in LOOKED_AT
    )
    return msgspec.json.decode(msgspec.json.encode(head)[:-1] + b"," + rest + b"}", type=Facts)
