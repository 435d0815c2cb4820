"""``procmemory``: the processes whose memory was dumped."""

from __future__ import annotations

import re
from typing import Any

from cuckoo_api.reporting.bounds import Notes, clip, take
from cuckoo_api.reporting.evidence import Evidence, Input
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors.dropped import MAX_METADATA, MAX_PATH, Origin, origins
from cuckoo_api.reporting.processors.formats import core, windowsdump
from cuckoo_api.reporting.urls import UrlFinder

MAX_DUMPS = 1_000

_DUMP = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,6}))?\.dmp", re.ASCII)
"""CAPE's monitor dumps a process once, and gives no number."""
_SYSTEM = ("/", "c:\\windows\\")
"""What lies there was there before the sample; any file of a Linux guest that nobody wrote to."""


def run(evidence: Evidence, job: Job, notes: Notes) -> list[dict[str, Any]]:
    """The report's ``procmemory``, an entry for each dump."""
    matches = [match for name in evidence.names("memory") if (match := _DUMP.fullmatch(name))]
    known = origins(evidence.read("files.json", MAX_METADATA), notes) if matches else {}
    entries = []
    for match in take(matches, MAX_DUMPS, notes, "procmemory"):
        try:
            with evidence.open(f"memory/{match[0]}") as source:
                size = source.size
                ranges = core.regions(source) or windowsdump.regions(source)
                source.rewind()
                urls = _urls(source, _of_files(ranges))
        except OSError:
            continue  # it was a file a moment ago and is none now
        entries.append(
            {
                "pid": int(match[1]),
                "num": int(match[2] or 1),
                "name": match[0].removesuffix(".dmp"),
                "file": f"memory/{match[0]}",
                "size": size,
                "filepath": _program(known.get(f"memory/{match[0]}")),
                "regions": ranges,
                "yara": [],
                "urls": urls,
            }
        )
    return entries


def _program(origin: Origin | None) -> str:
    """Which program the process ran; empty where the guest did not say."""
    return clip(origin.filepath or "", MAX_PATH) if origin is not None else ""


def _of_files(ranges: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Where the dump holds what a file holds as well, from byte to byte: nobody wrote to it."""
    return sorted(
        (item["offset"], item["offset"] + item["kept"])
        for item in ranges
        if item["path"].lower().startswith(_SYSTEM) and "w" not in item["protect"]
    )


def _urls(source: Input, without: list[tuple[int, int]]) -> list[str]:
    """The addresses in memory: those in the programs of the guest itself would hide them."""
    finder = UrlFinder()
    at = 0
    for chunk in source.chunks():
        begin, end = at, at + len(chunk)
        for first, last in without:
            if begin < last and first < end:
                finder.feed(chunk[max(0, begin - at) : max(0, first - at)] + b"\0")
                begin = max(begin, last)
        finder.feed(chunk[max(0, begin - at) :])
        at = end
    finder.finish()
    return finder.urls
