"""``network``: who was talked to and what was said, from the packet capture."""

from __future__ import annotations

import hashlib
from typing import Any

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence, Input
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors.traffic.packets import PARSE_ERRORS, datagrams
from cuckoo_api.reporting.processors.traffic.talk import Talk
from cuckoo_api.reporting.sections import EMPTY

PCAP = "dump.pcap"


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """The report's ``network``; empty with a note when there is no capture."""
    try:
        with evidence.open(PCAP) as source:
            section, files = read_capture(source, job, notes)
    except FileNotFoundError:
        notes.add("network: there is no capture")
        return dict(EMPTY["network"])
    try:
        evidence.fill("network", files)
    except OSError as exc:
        notes.add(f"network: the bodies could not be kept: {exc.strerror or exc}")
    return section


def read_capture(source: Input, job: Job, notes: Notes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a capture to its end, its first unreadable packet or the limit.

    The section, and what it names in ``network/``, by name.
    """
    digest = hashlib.sha256()
    for chunk in source.chunks():
        digest.update(chunk)
    source.rewind()
    talk = Talk(job, notes)
    for seen, datagram in datagrams(source, notes):
        try:
            talk.feed(seen, datagram)
        except PARSE_ERRORS:
            continue  # made to break a parser, so no part of a real conversation
    if source.truncated:
        notes.add(f"{PCAP}: only a part of its {source.size} bytes was read")
    whole = None if source.truncated else digest.hexdigest()
    return talk.section() | {"pcap_sha256": whole}, talk.bodies.files
