"""The step that judges: what the other parts amount to."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.parts import Parts
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
    deadline = time.monotonic() + request.seconds * SHARE
    found = match_signatures(facts, notes, SIGNATURES, deadline)
    parts.keep(PART, found)
    others = load_signatures(Path(request.cwd), SIGNATURES, notes)
    if others:
        parts.keep(PART, gravest_first([*found, *match_signatures(facts, notes, others, deadline)]))


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
