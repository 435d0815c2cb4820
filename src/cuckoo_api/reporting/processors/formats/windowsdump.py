"""Dumps of Windows processes: those of Cuckoo's and CAPE's monitor, and minidumps.

A monitor's dump is one region after another, each with a head of 24 bytes. A minidump has a
directory of streams: which ranges of memory are in it, how each region was protected, and where
which module was loaded.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from cuckoo_api.reporting.bounds import clip
from cuckoo_api.reporting.evidence import Input

MAX_REGIONS = 500
MAX_ENTRIES = 65_536
"""Of a stream, and heads in a monitor's dump."""
MAX_STREAMS = 256
MAX_MODULES = 4_096
MAX_PATH = 1_024

_PAGE = 0x1000
_HEAD = struct.Struct("<QIIII")
_PROTECTION = {
    0x00: "---", 0x01: "---", 0x02: "r--", 0x04: "rw-", 0x08: "rw-",
    0x10: "--x", 0x20: "r-x", 0x40: "rwx", 0x80: "rwx",
}  # fmt: skip
"""By the low byte; what is to be copied before it is written to can be written to."""

_MINIDUMP = struct.Struct("<4sIIIIIQ")
_STREAM = struct.Struct("<III")
_MODULES, _MEMORY, _MEMORY_64, _INFO = 4, 5, 9, 16
_MODULE = struct.Struct("<QIIII84x")
_RANGE, _RANGE_64 = struct.Struct("<QII"), struct.Struct("<QQ")
_REGION = struct.Struct("<QQIIQIIII")


class _Span(NamedTuple):
    """A range of addresses, and what is known of it."""

    start: int
    end: int
    protect: str = ""
    state: int | None = None
    kind: int | None = None
    path: str = ""


def regions(source: Input) -> list[dict[str, Any]]:
    """What is kept of each range of addresses; empty for what is no such dump, or a broken one."""
    found = _minidump if _read(source, 0, 4) == b"MDMP" else _records
    try:
        return [entry for entry, _ in zip(found(source), range(MAX_REGIONS), strict=False)]
    except struct.error:
        return []


def _records(source: Input) -> Iterator[dict[str, Any]]:
    """The regions of a monitor's dump, up to the first that can be none."""
    at = 0
    for _ in range(MAX_ENTRIES):
        head = _read(source, at, _HEAD.size)
        if len(head) < _HEAD.size:
            return
        address, size, state, kind, protect = _HEAD.unpack(head)
        at += _HEAD.size
        if address % _PAGE or not size or protect & 0xFF not in _PROTECTION:
            return
        if at >= source.size:
            return
        span = _Span(address, address + size, _PROTECTION[protect & 0xFF], state, kind)
        yield _entry(span, at, min(size, source.size - at))
        at += size


def _minidump(source: Input) -> Iterator[dict[str, Any]]:
    _, _, count, place, *_ = _MINIDUMP.unpack(_read(source, 0, _MINIDUMP.size))
    table = _read(source, place, min(count, MAX_STREAMS) * _STREAM.size)
    streams = {kind: (at, size) for kind, size, at in _whole(_STREAM, table)}
    known = sorted(_infos(source, *streams.get(_INFO, (0, 0))))
    modules = sorted(_modules(source, *streams.get(_MODULES, (0, 0))))
    ranges = (
        *_ranges(source, *streams.get(_MEMORY, (0, 0))),
        *_ranges_64(source, *streams.get(_MEMORY_64, (0, 0))),
    )
    for start, size, offset in ranges:
        kept = min(size, max(0, source.size - offset))
        for span in _cut(start, start + kept, known):
            module = _around(span.start, modules)
            at = offset + span.start - start
            shown = span._replace(path=module.path if module else "")
            yield _entry(shown, at, span.end - span.start)


def _cut(start: int, end: int, known: list[_Span]) -> Iterator[_Span]:
    """A range of memory in pieces that are protected alike."""
    while start < end:
        region = _around(start, known)
        if region is None:
            after = bisect_right(known, start, key=_start)
            until = min(end, known[after].start) if after < len(known) else end
            yield _Span(start, until)
        else:
            until = min(end, region.end)
            yield region._replace(start=start, end=until)
        start = until


def _around(address: int, spans: list[_Span]) -> _Span | None:
    """The span that holds the address."""
    before = bisect_right(spans, address, key=_start) - 1
    return spans[before] if before >= 0 and address < spans[before].end else None


def _start(span: _Span) -> int:
    return span.start


def _infos(source: Input, at: int, size: int) -> Iterator[_Span]:
    head = _read(source, at, min(size, 16))
    if len(head) < 16 or struct.unpack_from("<II", head) != (16, _REGION.size):
        return
    table = _read(source, at + 16, min(size - 16, MAX_ENTRIES * _REGION.size))
    for start, _, _, _, length, state, protect, kind, _ in _whole(_REGION, table):
        yield _Span(start, start + length, _PROTECTION.get(protect & 0xFF, ""), state, kind)


def _modules(source: Input, at: int, size: int) -> Iterator[_Span]:
    table = _read(source, at + 4, min(max(0, size - 4), MAX_MODULES * _MODULE.size))
    for start, length, _, _, name_at in _whole(_MODULE, table):
        letters = _read(source, name_at, 4)
        count = int.from_bytes(letters, "little")
        name = _read(source, name_at + 4, min(count, 2 * MAX_PATH)).decode("utf-16-le", "replace")
        yield _Span(start, start + length, path=clip(name, MAX_PATH))


def _ranges(source: Input, at: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Address, size and place in the file of what a small dump holds."""
    yield from _whole(_RANGE, _read(source, at + 4, min(max(0, size - 4), MAX_ENTRIES * 16)))


def _ranges_64(source: Input, at: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The same of a dump of all memory, where it lies in one piece."""
    if size < _RANGE_64.size:
        return
    offset = int.from_bytes(_read(source, at + 8, 8), "little")
    for start, length in _whole(
        _RANGE_64, _read(source, at + 16, min(size - 16, MAX_ENTRIES * 16))
    ):
        yield start, length, offset
        offset += length


def _whole(form: struct.Struct, table: bytes) -> Iterator[tuple[Any, ...]]:
    """The entries that are whole."""
    return form.iter_unpack(table[: len(table) // form.size * form.size])


def _read(source: Input, at: int, size: int) -> bytes:
    """Bytes at a place; fewer at the end of the file, none beyond it."""
    return os.pread(source.fileno(), size, at) if at < source.size else b""


def _entry(span: _Span, offset: int, kept: int) -> dict[str, Any]:
    return {
        "addr": f"0x{span.start:x}",
        "end": f"0x{span.end:x}",
        "size": span.end - span.start,
        "kept": kept,
        "offset": offset,
        "protect": span.protect,
        "state": span.state,
        "type": span.kind,
        "path": span.path,
    }
