"""The bodies of HTTP messages, kept within limits, to be looked at as files."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.filefacts import file_type

MAX_BODIES = 1_000
MAX_BODY = 8 << 20
MAX_BODIES_SIZE = 64 << 20
"""Of all bodies together, as they came and again as they are unpacked."""

_GZIP_OR_ZLIB = 47


class Body:
    """A body's beginning, as it came."""

    __slots__ = ("_bodies", "data", "truncated")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.data = bytearray()
        self.truncated = False

    def write(self, data: bytes) -> None:
        """Take the next bytes; beyond a limit they are dropped."""
        room = self._bodies.room(MAX_BODY - len(self.data), len(data))
        self.data += data[:room]
        self.truncated = self.truncated or room < len(data)


class Bodies:
    """All that are kept, under one bound."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._left = MAX_BODIES_SIZE
        self._unpacked = MAX_BODIES_SIZE
        self.files: dict[str, bytes] = {}
        """The contents by SHA-256, of the bodies that were described."""
        self._facts: dict[str, dict[str, Any]] = {}
        """Of these: the same body often comes again."""

    def begin(self) -> Body:
        """For a message whose head went by."""
        return Body(self)

    def room(self, own: int, wanted: int) -> int:
        """How many of the wanted bytes may be kept; they count from now on."""
        room = min(own, self._left, wanted)
        self._left -= room
        if room < min(own, wanted):
            self._notes.cut("network.http, bodies in all", MAX_BODIES_SIZE)
        return room

    def describe(self, body: Body, encoding: str) -> dict[str, Any] | None:
        """The report's view of a body, which gets a file in ``network/``; None of an empty one."""
        data, whole = bytes(body.data), not body.truncated
        if encoding.strip().lower() in ("gzip", "x-gzip", "deflate"):
            data, whole = self._unpack(data, whole=whole)
        if not data:
            return None
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self.files:
            if len(self.files) >= MAX_BODIES:
                self._notes.cut("network.http, bodies", MAX_BODIES)
                return None
            self.files[sha256] = data
            self._facts[sha256] = {
                "path": f"network/{sha256}",
                "size": len(data),
                "truncated": False,
                "type": file_type(data),
                "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
                "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
                "sha256": sha256,
            }
        return self._facts[sha256] | {"truncated": not whole}

    def _unpack(self, data: bytes, *, whole: bool) -> tuple[bytes, bool]:
        """What was compressed on its way, up to a limit; as it came when it was not really."""
        limit = min(MAX_BODY, self._unpacked)
        if limit <= 0:  # to zlib, 0 is no limit
            self._notes.cut("network.http, unpacked bodies in all", MAX_BODIES_SIZE)
            return data, whole
        unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            plain = unpacker.decompress(data, limit)
        except zlib.error:
            return data, whole
        self._unpacked -= len(plain)
        return plain, whole and unpacker.eof
