"""Parts of a finished report, without taking the whole of it into memory.

The file is mapped, and its outermost objects are split by a parser that copies nothing. It may be
mapped because a report is never written to: a new one takes its place.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cuckoo_api.model.errors import CuckooError, NotFound

BULK = frozenset({"procmemory", "debug", "screenshots", "metadata"})
BULK_OF_BEHAVIOR = frozenset({"generic", "apistats", "processes"})

Pieces = list[bytes | memoryview]
"""Bytes to be sent one after the other. The map lives as long as a view of it does."""

_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class DamagedReport(CuckooError):
    """The report on the disk is no JSON object."""

    code = "damaged_report"


def element(report: Path, key: str) -> Pieces:
    """The value of one outermost key; NotFound where it is absent or null. Blocks."""
    raw = _parts(report).get(key)
    if raw is None or bytes(memoryview(raw)[:5]) == b"null":
        raise NotFound(f"'{key:.80}' not found")
    return [memoryview(raw)]


def summary(report: Path) -> Pieces:
    """The report without what is large in it. Blocks."""
    parts = _parts(report)
    kept: dict[str, Pieces] = {
        key: [memoryview(raw)] for key, raw in parts.items() if key not in BULK
    }
    behavior = parts.get("behavior")
    if behavior is not None and bytes(memoryview(behavior)[:1]) == b"{":
        inner = _split(behavior).items()
        kept["behavior"] = _object(
            {key: [memoryview(raw)] for key, raw in inner if key not in BULK_OF_BEHAVIOR}
        )
    return _object(kept)


def _object(values: Mapping[str, Pieces]) -> Pieces:
    pieces: Pieces = []
    for key, value in values.items():
        pieces += [b"," if pieces else b"{", msgspec.json.encode(key), b":", *value]
    return [*pieces, b"}"] if pieces else [b"{}"]


def _parts(report: Path) -> dict[str, msgspec.Raw]:
    try:
        with report.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _split(mapped)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise DamagedReport(
            "The report on the disk is damaged; /tasks/rereport makes a new one", log=str(exc)
        ) from exc
