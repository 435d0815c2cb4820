"""The lines with which a guest opens a connection. Pure parsing; the sender is hostile."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LINE = 4096
"""Bytes of one line, its end included."""
FOLDERS = frozenset({"files", "shots", "buffer", "extracted", "memory", "package_files"})
"""Where a guest may put files: as Cuckoo 2 has it, and what its packages bring with them."""
MAX_NAME = 255
"""Bytes of a file's name, as file systems have it."""
MAX_PIDS = 64

_TRACE = re.compile(r"[A-Za-z0-9_-]{1,64}\.strace")
_COMMAND = re.compile(r"([A-Z]{1,16})(?: +([0-9]{1,10}))?")
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f:\u2028\u2029]")
"""Control characters, line ends, and what names a stream on some file systems."""
_MAX_PID = (1 << 32) - 1


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
    filepath: str | None = None
    pids: tuple[int, ...] = ()


def parse_command(line: bytes) -> Command:
    """The first line of a connection. Raises Refused."""
    found = _COMMAND.fullmatch(_text(line))
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
    """``folder/name``: one folder of the list, one plain name in it. Raises Refused."""
    # Cuckoo 2's analyzer for Windows joins the two as its own system does
    text = _text(line).replace("\\", "/")
    folder, slash, name = text.partition("/")
    if not slash or _UNFIT.search(text):
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


def parse_filepath(line: bytes) -> str | None:
    """Where the file was in the guest; None when that is left out.

    Never a path of ours, so any bytes will do: a sample must not be able to hide a file by
    giving it a name that is not UTF-8.
    """
    return _bare(line).decode(errors="backslashreplace") or None


def parse_pids(line: bytes) -> tuple[int, ...]:
    """The ids of the file's processes, separated by blanks; none is fine. Raises Refused."""
    words = _text(line).split()
    if len(words) > MAX_PIDS or not all(w.isascii() and w.isdigit() and len(w) < 11 for w in words):
        raise Refused("process ids that are not numbers")
    return tuple(int(word) for word in words)


def _bare(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _text(line: bytes) -> str:
    try:
        return _bare(line).decode()
    except UnicodeDecodeError:
        raise Refused("a line that is not UTF-8") from None
