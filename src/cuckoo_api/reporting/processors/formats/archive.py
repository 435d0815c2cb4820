"""What lies in an archive, by its own word; nothing is unpacked."""

from __future__ import annotations

import os
import stat
from typing import Any

import libarchive

from cuckoo_api.reporting.archivereader import is_encrypted, opened, reason
from cuckoo_api.reporting.archives import ArchiveKind
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Input
from cuckoo_api.reporting.processors.formats.words import text

MAX_FILES = 2_000
MAX_PATH = 1_024
MAX_UNPACKED = 1 << 30
"""Bytes: to come to an entry of a compressed tar file, all before it is decompressed."""

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


def describe_archive(source: Input, kind: ArchiveKind, notes: Notes) -> dict[str, Any]:
    """The report's ``static.archive``. What is broken ends the list, with a note."""
    files: list[dict[str, Any]] = []
    size = 0
    form = kind.formats[0]
    os.lseek(source.fileno(), 0, os.SEEK_SET)
    try:
        with opened(source.fileno(), kind.formats, kind.filters) as archive:
            for entry in archive:
                form = _format(archive, kind)
                if archive.format_name == b"raw":
                    break  # one compressed file, of which nothing is known
                if len(files) >= MAX_FILES:
                    notes.cut("static.archive.files", MAX_FILES)
                    break
                files.append(_file(entry))
                size += max(0, entry.size or 0)
                if size > MAX_UNPACKED:
                    notes.add("static.archive.files: cut at an entry that is very large")
                    break
    except libarchive.ArchiveError as exc:
        notes.add(f"static: the archive cannot be read to its end: {reason(exc)}")
    return {
        "format": form,
        "files": files,
        "unpacked_size": size,
        "encrypted": any(file["encrypted"] for file in files),
    }


def _format(archive: libarchive.read.ArchiveRead, kind: ArchiveKind) -> str:
    """``zip``, ``tar.gzip``, or ``gzip`` for a file that is compressed by itself."""
    if archive.format_name == b"raw":
        return "".join(kind.filters)
    return ".".join((kind.formats[0], *kind.filters))


def _file(entry: libarchive.entry.ArchiveEntry) -> dict[str, Any]:
    return {
        "name": text(entry.pathname or "", MAX_PATH),
        "type": "link" if entry.islnk else _KINDS.get(stat.S_IFMT(entry.filetype), "other"),
        "size": entry.size,
        "encrypted": is_encrypted(entry),
    }
