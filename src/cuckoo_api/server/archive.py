"""The form of a backup: a tar archive, and at its end a list of all that is in it, with hashes.

What ``cuckoo backup`` writes and ``cuckoo restore`` reads, both as a stream and in constant memory.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

import msgspec
import zstandard

from cuckoo_api.model.errors import BadInput

FORMAT = 1
HEAD = "cuckoo-backup.json"
"""The first member."""
MANIFEST = "MANIFEST"
"""The last member: a line for each of the others."""
DATABASE = "cuckoo.db"
UNITS = (DATABASE, "conf", "signatures", "analyzer", "storage/binaries", "storage/analyses")
"""What a backup may hold; a restore replaces each of them as a whole."""
SUFFIXES = (".tar.zst", ".tzst", ".tar.gz", ".tgz")
CHUNK = 1 << 20

_SAMPLE_LINK = re.compile(r"storage/analyses/[0-9]{1,18}/binary")
_SAMPLE = re.compile(r"\.\./\.\./binaries/([0-9a-f]{64})")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a backup before its content."""

    format: int
    version: str
    """Of the server that made it."""
    made_on: str
    units: tuple[str, ...]


def check_name(path: Path) -> None:
    """BadInput for a file whose name does not say how it is compressed."""
    if not path.name.endswith(SUFFIXES):
        raise BadInput(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")


def entry(digest: str, size: int, name: str) -> bytes:
    """A line of the manifest. A name may hold any byte: it is quoted as JSON."""
    return f"{digest} {size} ".encode() + msgspec.json.encode(_text(name)) + b"\n"


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unit_of(name: str) -> str:
    """Which part of a backup a member belongs to; BadInput for a name that leads elsewhere."""
    if all(part not in ("", ".", "..") for part in name.split("/")) and "\0" not in name:
        for unit in UNITS:
            if name == unit or (unit != DATABASE and name.startswith(f"{unit}/")):
                return unit
    raise BadInput(f"the archive holds {name!r}, which no backup has")


def linked_sample(member: tarfile.TarInfo) -> str:
    """The SHA-256 that an analysis' link to its sample names; BadInput for any other link."""
    target = _SAMPLE.fullmatch(member.linkname)
    if not _SAMPLE_LINK.fullmatch(member.name) or target is None:
        raise BadInput(f"the archive holds {member.name!r}, a link to {member.linkname!r}")
    return target[1]


class Hashing:
    """A file to read from: so many bytes and no more, with their hash.

    A file that was cut meanwhile goes on with zeros: the archive has promised its size already.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size
        self._hash = hashlib.sha256()

    def read(self, wanted: int = -1) -> bytes:
        """Up to ``wanted`` bytes."""
        count = self._left if wanted < 0 else min(wanted, self._left)
        data = self._file.read(count)
        data += bytes(count - len(data))
        self._left -= len(data)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """Of what was read."""
        return self._hash.hexdigest()


@contextmanager
def writing(raw: IO[bytes], name: str) -> Iterator[tarfile.TarFile]:
    """A tar archive that goes to ``raw``, compressed as the name says."""
    with ExitStack() as stack:
        packed: IO[bytes]
        if name.endswith("gz"):
            packed = cast("IO[bytes]", gzip.GzipFile(fileobj=raw, mode="wb", mtime=0))
        else:
            packed = zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(
                raw, closefd=False
            )
        stack.enter_context(packed)
        yield stack.enter_context(
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK)
        )


@contextmanager
def reading(raw: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """The archive in ``raw``, whatever it is called. BadInput where it is none, or breaks off."""
    magic = raw.read(4)
    raw.seek(0)
    try:
        with ExitStack() as stack:
            packed: IO[bytes]
            if magic[:2] == b"\x1f\x8b":
                packed = cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
            else:
                packed = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)
            stack.enter_context(packed)
            yield stack.enter_context(tarfile.open(fileobj=packed, mode="r|", bufsize=CHUNK))
    except (tarfile.TarError, zstandard.ZstdError, EOFError, gzip.BadGzipFile) as exc:
        raise BadInput(f"it is no backup, or only a part of one: {exc}") from exc


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Each as it comes."""
    while (member := archive.next()) is not None:
        yield member
        forget(archive)


def forget(archive: tarfile.TarFile) -> None:
    """Let go of the members that have passed: a stream has no use for a million of them."""
    archive.members.clear()  # type: ignore[attr-defined]  # the stubs leave it out
