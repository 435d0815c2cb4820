"""Archives by libmagic's words: what they are, and which of libarchive's parsers may read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArchiveKind:
    """An archive, by libarchive's names for the parsers that may read it."""

    formats: tuple[str, ...]
    filters: tuple[str, ...] = ()


def _compressed(name: str) -> ArchiveKind:
    """A tar file, or a single file."""
    return ArchiveKind(("tar", "raw"), (name,))


ARCHIVES = {
    "Zip archive data": ArchiveKind(("zip",)),
    "7-zip archive data": ArchiveKind(("7zip",)),
    "RAR archive data": ArchiveKind(("rar", "rar5")),
    "Microsoft Cabinet archive data": ArchiveKind(("cab",)),
    "ISO 9660 CD-ROM filesystem data": ArchiveKind(("iso9660",)),
    "POSIX tar archive": ArchiveKind(("tar",)),
    "tar archive": ArchiveKind(("tar",)),
    "gzip compressed data": _compressed("gzip"),
    "bzip2 compressed data": _compressed("bzip2"),
    "XZ compressed data": _compressed("xz"),
    "LZMA compressed data": _compressed("lzma"),
    "lzip compressed data": _compressed("lzip"),
    "LZ4 compressed data": _compressed("lz4"),
    "Zstandard compressed data": _compressed("zstd"),
    "compress'd data": _compressed("compress"),
}
"""How libmagic's description begins, and what reads it. Office documents, Java and Android
programs are none of them, though they are zip files."""


def archive_kind(file_type: str) -> ArchiveKind | None:
    """How to read the archive that libmagic describes; None where it describes none."""
    for beginning, kind in ARCHIVES.items():
        if file_type.startswith(beginning):
            return kind
    return None
