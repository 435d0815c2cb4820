"""The lines with which a guest opens a connection. Pure parsing; the sender is hostile."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LINE = 4096
"""Bytes of one line, its end included."""
FOLDERS = frozenset({"files", "shots", "buffer", "extracted", "memory"})
"""Where a guest may put files, as Cuckoo 2 has it."""
MAX_NAME = 200
MAX_PIDS = 64

_TRACE = re.compile(r"[A-Za-z0-9_-]{1,64}\.strace")
_COMMAND = re.compile(r"([A-Z]{1,16})(?: +([0-9]{1,10}))?")
_MAX_PID = (1 << 31) - 1


class Refused(Exception):
    """What the guest asked for is not served; the text says why."""


@dataclass(frozen=True, slots=True)
class Command:
    """The first line: ``LOG``, ``BSON <pid>`` or ``FILE [2]``."""

    name: str
    number: int | None


@dataclass(frozen=True, slots=True)
class FileHeader:
    """Where a file goes in the analysis folder, and where it was in the guest."""

    destination: str
    filepath: str
    pids: tuple[int, ...]


def text_of(line: bytes) -> str:
    """A line without its end, as text. Raises Refused."""
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise Refused("a line that is not UTF-8") from None


def parse_command(line: bytes) -> Command:
    """The first line of a connection."""
    found = _COMMAND.fullmatch(text_of(line))
    if found is None:
        raise Refused(f"no command: {line[:40]!r}")
    name = found[1]
    number = None if found[2] is None else int(found[2])
    if name == "LOG":
        return Command(name, None)
    if name == "BSON":
        if number is None or not 0 < number <= _MAX_PID:
            raise Refused("BSON without a process id")
        return Command(name, number)
    if name == "FILE":
        if number not in (None, 2):
            raise Refused(f"FILE version {number}")
        return Command(name, number or 1)
    raise Refused(f"unknown command {name}")


def parse_destination(line: bytes) -> str:
    """``folder/name``: one folder of the list, one plain name in it."""
    text = text_of(line)
    folder, slash, name = text.partition("/")
    if not slash or any(c in text for c in "\\:\0") or not text.isprintable():
        raise Refused(f"not a destination: {text[:80]!r}")
    if folder == "logs":
        # our addition to the protocol: the Linux analyzer's trace, under a name of its own kind
        if not _TRACE.fullmatch(name):
            raise Refused(f"not a trace's name: {text[:80]!r}")
        return text
    if folder not in FOLDERS:
        raise Refused(f"no folder of results: {text[:80]!r}")
    if not name or "/" in name or name.startswith(".") or len(name.encode()) > MAX_NAME:
        raise Refused(f"not a file's name: {text[:80]!r}")
    return text


def parse_pids(line: bytes) -> tuple[int, ...]:
    """The ids of the processes that made the file, separated by blanks; none is fine."""
    words = text_of(line).split()
    if len(words) > MAX_PIDS or not all(w.isascii() and w.isdigit() and len(w) < 11 for w in words):
        raise Refused("process ids that are not numbers")
    return tuple(int(word) for word in words)
