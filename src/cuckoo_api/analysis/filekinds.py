"""What libmagic's words for a file mean here: an archive, or something that is worth running."""

from __future__ import annotations

import re
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

SCRIPTS = frozenset(
    {
        "bat", "cmd", "hta", "htm", "html", "js", "jse", "pl", "ps1", "psm1", "py", "rb", "scf",
        "sct", "sh", "svg", "url", "vbe", "vbs", "wsc", "wsf", "xml",
    }
)  # fmt: skip
"""Extensions by which a guest runs a file that is text."""

_DULL = re.compile(
    r"""
      empty$ | very\ short\ file
    | [^,]*\btext\b(?!\ executable)          # "ASCII text", "Unicode text, UTF-8 text"
    | C(?:\+\+)?\ source | JSON | CSV
    | [^,]*\bimage\ data\b | [^,]*\bbitmap\b | PC\ bitmap | Adobe\ Photoshop\ Image
    | MS\ Windows\ (?:icon|cursor)\ resource
    | RIFF\ .*?\b(?:AVI|WAVE|Web/P)\b | Audio\ file | MPEG\ | Ogg\ | FLAC\ | Matroska | WebM
    | ISO\ Media | Apple\ QuickTime | Microsoft\ ASF
    | (?:TrueType|OpenType)\ | Web\ Open\ Font
    """,
    re.VERBOSE,
)


def archive_kind(file_type: str) -> ArchiveKind | None:
    """How to read the archive that libmagic describes; None where it describes none."""
    for beginning, kind in ARCHIVES.items():
        if file_type.startswith(beginning):
            return kind
    return None


def is_worth_running(name: str, file_type: str, size: int) -> bool:
    """Whether a member of an archive becomes a task.

    Not so what is empty, plain text, source code, a picture, sound, a film or a font, unless its
    name has an extension by which text is run.
    """
    if not size:
        return False
    return name.rpartition(".")[2].lower() in SCRIPTS or not _DULL.match(file_type)
