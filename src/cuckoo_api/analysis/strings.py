"""A line of text -> the URL or the hash that it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cuckoo_api.model.errors import BadInput

MAX_LINES = 1000
MAX_URL = 8 << 10

_HASHES: dict[int, str] = {32: "md5", 40: "sha1", 64: "sha256"}
_HEX = re.compile(r"[0-9a-fA-F]+")
_URL = re.compile(r"(?:https?|ftp)://[^\s/?#]+\S*", re.IGNORECASE)
_LABEL = r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?|_[\w-]{1,62})"
_BARE = re.compile(
    rf"(?:(?:{_LABEL}\.)+[^\W\d_](?:[\w-]{{0,61}}[^\W_])|\d{{1,3}}(?:\.\d{{1,3}}){{3}})\.?"
    r"(?::\d{1,5})?(?:[/?#]\S*)?"
)


@dataclass(frozen=True, slots=True)
class Hash:
    """A file's hash, in lower case."""

    algorithm: str
    """``md5``, ``sha1`` or ``sha256``."""
    digest: str


def lines_of(text: str) -> list[str]:
    """The lines that hold something. Raises BadInput for too many."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if len(lines) > MAX_LINES:
        raise BadInput(f"strings: at most {MAX_LINES} lines in one request")
    return lines


def parse_line(line: str) -> str | Hash:
    """A URL, with ``http://`` before a bare domain, or a hash. Raises BadInput for neither."""
    if _HEX.fullmatch(line) and len(line) in _HASHES:
        return Hash(_HASHES[len(line)], line.lower())
    if len(line) <= MAX_URL and line.isprintable():
        if _URL.fullmatch(line):
            return line
        if _BARE.fullmatch(line):
            return f"http://{line}"
    raise BadInput(f"'{line:.200}' was neither a valid hash or url")
