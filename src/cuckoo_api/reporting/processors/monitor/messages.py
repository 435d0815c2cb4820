"""A log's messages: BSON documents one after the other, and what the calls in them mean.

A message of the type ``info`` explains a call once: its number, name, category and arguments. The
messages of calls then have the number and the bare values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import bson
import msgspec
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError

from cuckoo_api.reporting.bounds import Notes, clip, printable
from cuckoo_api.reporting.evidence import Input

MAX_DOCUMENT = 20 << 20
"""What the monitor itself keeps to. Its largest messages hold a dumped buffer."""
MAX_EXPLAINED = 4_096
MAX_ARGUMENTS = 64
MAX_VALUE = 2_048
MAX_ITEMS = 64
MAX_DEPTH = 4
MAX_NAME = 64

_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    unicode_decode_error_handler="backslashreplace",
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)


def documents(source: Input, notes: Notes, name: str) -> Iterator[dict[str, Any]]:
    """The documents of a log, up to where its framing breaks; one that is broken is left out."""
    broken = 0
    while head := source.read(4):
        size = int.from_bytes(head, "little")
        body = source.read(size - 4) if len(head) == 4 and 5 <= size <= MAX_DOCUMENT else b""
        if len(head) + len(body) != size:
            notes.add(f"{name}: the log breaks off")
            break
        try:
            yield bson.decode(head + body, _OPTIONS)
        except (BSONError, ValueError, OverflowError):
            broken += 1
    if broken:
        notes.add(f"{name}: {broken} messages were not understood")
    if source.truncated:
        notes.add(f"{name}: only a part of its {source.size} bytes was read")


class Explained(msgspec.Struct, frozen=True):
    """What an ``info`` message says of a call."""

    name: str
    category: str
    arguments: tuple[str, ...]
    kinds: tuple[str, ...]
    """For each argument ``p`` for a pointer, ``x`` for 32 bits in hexadecimal, else anything."""
    values: Mapping[str, Mapping[int, str]]
    """For arguments that are one of some named values."""
    bits: Mapping[str, tuple[tuple[int, str], ...]]
    """For arguments whose bits have names."""


def explained(document: Mapping[str, Any]) -> Explained:
    """Read an ``info`` message of any shape."""
    given = document.get("args")
    pairs = [
        (str(item[0]), str(item[1])) if isinstance(item, list) and len(item) == 2 else (item, "")
        for item in (given if isinstance(given, list) else [])[:MAX_ARGUMENTS]
    ]
    return Explained(
        name=clip(str(document.get("name", "")), MAX_NAME),
        category=clip(str(document.get("category") or "misc"), MAX_NAME),
        arguments=tuple(clip(str(name), MAX_NAME) for name, _ in pairs),
        kinds=tuple(kind for _, kind in pairs),
        values={key: dict(named) for key, named in _named(document.get("flags_value"))},
        bits=dict(_named(document.get("flags_bitmask"))),
    )


def arguments(call: Explained, values: list[Any], *, wide: bool) -> dict[str, Any]:
    """The arguments of a call by name, as the report shows them."""
    return {
        name: _typed(value, kind, wide=wide)
        for name, kind, value in zip(call.arguments, call.kinds, values, strict=True)
    }


def flags(call: Explained, given: Mapping[str, Any]) -> dict[str, str]:
    """The names of those arguments that stand for something."""
    found: dict[str, str] = {}
    for argument, named in call.values.items():
        value = _number(given.get(argument))
        if value is not None and value in named:
            found[argument] = named[value]
    for argument, bits in call.bits.items():
        value = _number(given.get(argument))
        if value is not None and argument not in found:
            found[argument] = "|".join(name for bit, name in bits if bit and value & bit == bit)
    return found


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can carry it, bounded."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return clip(value, MAX_VALUE)
    if isinstance(value, bytes):
        return clip(printable(value[:MAX_VALUE]), MAX_VALUE)
    if depth < MAX_DEPTH and isinstance(value, list):
        return [plain(item, depth + 1) for item in value[:MAX_ITEMS]]
    if depth < MAX_DEPTH and isinstance(value, dict):
        items = list(value.items())[:MAX_ITEMS]
        return {clip(key, MAX_NAME): plain(item, depth + 1) for key, item in items}
    return clip(str(value)[:MAX_VALUE], MAX_VALUE)


def _typed(value: Any, kind: str, *, wide: bool) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if kind == "p" and wide:
            return f"0x{value % (1 << 64):016x}"
        if kind in ("p", "x", "h"):
            return f"0x{value % (1 << 32):08x}"
        return value if wide or value >= 0 else value % (1 << 32)
    return plain(value)


def _named(table: Any) -> Iterator[tuple[str, tuple[tuple[int, str], ...]]]:
    """``{argument: [[number, name], …]}``, as far as it is that."""
    for argument, pairs in list(table.items())[:MAX_ARGUMENTS] if isinstance(table, dict) else ():
        if isinstance(pairs, list):
            yield (
                argument,
                tuple(
                    (int(pair[0]), clip(str(pair[1]), MAX_NAME))
                    for pair in pairs[:1024]
                    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int)
                ),
            )


def _number(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            return int(value[:18], 16)
        except ValueError:
            return None
    return value if isinstance(value, int) else None
