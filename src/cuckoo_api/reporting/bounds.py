"""Lists that stop growing, and the notes that say so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from cuckoo_api.reporting.job import MAX_MESSAGE, MAX_MESSAGES

T = TypeVar("T")


class Notes:
    """Sentences for ``debug.errors`` about what was cut or not readable; each once, bounded."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Note a sentence; beyond the limit it is dropped."""
        if len(self._lines) < MAX_MESSAGES:
            self._lines[text[:MAX_MESSAGE]] = None

    def cut(self, what: str, limit: int) -> None:
        """Note that ``what`` has more than is kept."""
        self.add(f"{what}: cut at {limit}")

    @property
    def lines(self) -> list[str]:
        """The notes in order."""
        return list(self._lines)


def take(items: Iterable[T], limit: int, notes: Notes, what: str) -> list[T]:
    """At most ``limit`` items, with a note when there were more. Reads one item too many."""
    kept: list[T] = []
    for item in items:
        if len(kept) >= limit:
            notes.cut(what, limit)
            break
        kept.append(item)
    return kept


def clip(text: str, limit: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(data: bytes) -> str:
    """Bytes of a guest as text that JSON can carry; what is not UTF-8 shows as ``\\xNN``."""
    return data.decode("utf-8", "backslashreplace")


def visible(text: str, limit: int) -> str:
    """One line in which nothing is hidden: what is not printable shows as an escape."""
    if not text.isprintable():
        text = (
            "".join(
                sign if sign.isprintable() else sign.encode("unicode_escape").decode()
                for sign in text[:limit]
            )
            + text[limit : limit + 1]
        )
    return clip(text, limit)
