"""What a parser hands on, in a form that JSON can carry; and the measures that formats share."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cuckoo_api.reporting.bounds import Notes, clip

MAX_NAME = 256
ENTROPY_BYTES = 4 << 20

Part = Callable[[Any, Notes], Any]


def parts(of: Mapping[str, Part], binary: Any, notes: Notes) -> dict[str, Any]:
    """Each key's value; None with a note for one that the parser could not get out of the file."""
    made: dict[str, Any] = {}
    for key, make in of.items():
        try:
            # LIEF warns of each number that its enumerations do not have
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                made[key] = make(binary, notes)
        except Exception as exc:  # noqa: BLE001 - a parser raises what it likes for hostile input
            reason = f"{type(exc).__name__}: {clip(str(exc), 200)}"
            notes.add(f"static: {key} was not readable: {reason}")
            made[key] = None
    return made


def text(name: str | bytes, limit: int = MAX_NAME) -> str:
    """A name from a file; what is no text in it shows as an escape."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    # LIEF hands on what is no character at all
    return clip(name.encode("utf-8", "backslashreplace").decode(), limit)


def word(value: object) -> str:
    """The last part of an enumeration's name; a number that has none stays a number."""
    return str(value).rpartition(".")[2].rstrip("_")


def wide_hex(number: int) -> str:
    """An address as Cuckoo wrote it: at least eight digits."""
    return f"0x{number:08x}"


def entropy(data: bytes) -> float:
    """Bits for each byte, 0 to 8, of the first megabytes; over 7 means packed or encrypted."""
    head = data[:ENTROPY_BYTES]
    shares = (count / len(head) for count in Counter(head).values())
    return round(abs(sum(share * math.log2(share) for share in shares)), 3)
