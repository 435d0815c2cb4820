"""``strings``: readable text in the sample, ASCII and UTF-16."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.evidence import Evidence, Input
from cuckoo_api.reporting.job import Job

MIN_LENGTH = 4
MAX_LENGTH = 512
MAX_STRINGS = 5_000

_READABLE = re.compile(
    rb"(?:[\x20-\x7e]\x00){%d,%d}|[\x20-\x7e\t]{%d,%d}"
    % (MIN_LENGTH, MAX_LENGTH, MIN_LENGTH, MAX_LENGTH)
)
_OVERLAP = 2 * MAX_LENGTH


def run(evidence: Evidence, job: Job, notes: Notes) -> list[str]:
    """The first strings of the sample, each once, in their order; empty for a URL."""
    if job.category == "url":
        return []
    try:
        with evidence.sample() as source:
            return take(_distinct(find(source)), MAX_STRINGS, notes, "strings")
    except FileNotFoundError:
        return []  # the target's own note says so


def find(source: Input) -> Iterator[str]:
    """Every readable run; one longer than the limit comes in pieces."""
    rest = b""
    for chunk in source.chunks():
        data = rest + chunk
        # a run that begins after this may go on in the next piece
        done = limit = max(0, len(data) - _OVERLAP)
        for match in _READABLE.finditer(data):
            if match.start() >= limit:
                break
            yield _text(match[0])
            done = max(limit, match.end())
        rest = data[done:]
    for match in _READABLE.finditer(rest):
        yield _text(match[0])


def _text(data: bytes) -> str:
    return data.replace(b"\0", b"").decode("ascii")


def _distinct(items: Iterator[str]) -> Iterator[str]:
    """Each once; bounded because the consumer stops at its own limit."""
    seen: set[str] = set()
    for item in items:
        if item not in seen:
            seen.add(item)
            yield item
