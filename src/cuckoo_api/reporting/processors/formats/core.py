"""Core files, as the Linux analyzer sends the memory of a process: which addresses are in them."""

from __future__ import annotations

import struct
from typing import Any

from cuckoo_api.reporting.bounds import clip, printable
from cuckoo_api.reporting.evidence import Input

MAX_HEADERS = 4_096
MAX_REGIONS = 500
MAX_NOTE = 1 << 20
MAX_PATH = 1_024

_MAGIC = b"\x7fELF\2\1\1"
_HEAD = struct.Struct("<16sHHIQQQIHHHHHH")
_ENTRY = struct.Struct("<IIQQQQQQ")
_CORE, _LOAD, _NOTE, _NT_FILE = 4, 1, 4, 0x46494C45


def regions(source: Input) -> list[dict[str, Any]]:
    """What is kept of each range of addresses; empty for what is no core file, or a broken one."""
    head = source.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        return []
    kind, place, size, count = (_HEAD.unpack(head)[field] for field in (1, 5, 9, 10))
    if kind != _CORE or place != _HEAD.size or size != _ENTRY.size or count > MAX_HEADERS:
        return []
    table = source.read(size * count)
    entries = list(_ENTRY.iter_unpack(table[: len(table) // size * size]))
    files = _files(source, entries)
    found: list[dict[str, Any]] = []
    for kind, flags, offset, start, _, kept, length, _ in entries:
        if kind != _LOAD or not kept or len(found) >= MAX_REGIONS:
            continue
        found.append(
            {
                "addr": f"0x{start:x}",
                "end": f"0x{start + length:x}",
                "size": length,
                "kept": kept,
                "offset": offset,
                "protect": "".join(
                    letter if flags & flag else "-"
                    for letter, flag in zip("rwx", (4, 2, 1), strict=True)
                ),
                "path": files.get(start, ""),
            }
        )
    return found


def _files(source: Input, entries: list[tuple[int, ...]]) -> dict[int, str]:
    """The file that is mapped at an address, from the note that follows the table."""
    size = next((entry[5] for entry in entries if entry[0] == _NOTE), 0)
    note = source.read(min(size, MAX_NOTE))
    if len(note) < 36 or struct.unpack_from("<I", note, 8)[0] != _NT_FILE:
        return {}
    count = struct.unpack_from("<Q", note, 20)[0]
    names_at = 36 + 24 * count
    if count > MAX_HEADERS or names_at > len(note):
        return {}
    names = note[names_at:].split(b"\0")
    starts = (struct.unpack_from("<Q", note, 36 + 24 * i)[0] for i in range(count))
    return {
        start: clip(printable(name), MAX_PATH) for start, name in zip(starts, names, strict=False)
    }
