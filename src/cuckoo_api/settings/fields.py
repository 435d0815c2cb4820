"""Fields of the sections' dataclasses, which know what their keys may hold."""

from __future__ import annotations

from dataclasses import field
from typing import Any

MAX_INT = (1 << 31) - 1


def number(default: int, low: int, high: int = MAX_INT, *, scale: int = 1) -> Any:
    """An integer field. The file holds ``default / scale``, within ``low`` and ``high``."""
    return field(default=default, metadata={"low": low, "high": high, "scale": scale})


def hidden() -> Any:
    """A text that no ``repr`` shows, and that may stand elsewhere; see ``secret.py``."""
    return field(default="", repr=False, metadata={"secret": True})


def choice(default: str, *allowed: str) -> Any:
    """A field that takes one of a few words."""
    return field(default=default, metadata={"choices": allowed})
