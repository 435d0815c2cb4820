"""A submitted file: what it hashes to."""

from __future__ import annotations

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A sample as the API shows it. Hashes are lower-case hex, ``crc32`` upper as in Cuckoo 2."""

    id: int
    md5: str
    sha1: str
    sha256: str
    sha512: str
    crc32: str
    ssdeep: str | None
    file_size: int
    file_type: str


class NewSample(msgspec.Struct, frozen=True, kw_only=True):
    """A file that lies in ``storage/binaries`` and has no row yet."""

    md5: str
    sha1: str
    sha256: str
    sha512: str
    crc32: str
    ssdeep: str | None
    file_size: int
    file_type: str
