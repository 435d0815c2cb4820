"""libarchive, with only those parsers that a file's kind calls for. For worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import libarchive
from libarchive import ffi

BLOCK = 64 << 10

_is_encrypted = ffi.ffi("entry_is_encrypted", [ffi.c_archive_entry_p], ffi.c_int)


@contextmanager
def opened(
    handle: int, formats: Sequence[str], filters: Sequence[str], password: str = ""
) -> Iterator[libarchive.read.ArchiveRead]:
    """The archive in an open file, which stays open.

    libarchive's "all" would have parsers that start programs, and one that opens files by name.
    """
    pointer = ffi.read_new()
    try:
        if password:
            ffi.read_add_passphrase(pointer, password.encode())
        for name in filters:
            ffi.get_read_filter_function(name)(pointer)
        for name in formats:
            ffi.get_read_format_function(name)(pointer)
        ffi.read_open_fd(pointer, handle, BLOCK)
        yield libarchive.read.ArchiveRead(pointer)
    finally:
        ffi.read_free(pointer)


def is_encrypted(entry: libarchive.entry.ArchiveEntry) -> bool:
    """Whether an entry's content is locked with a password."""
    return bool(_is_encrypted(entry._entry_p))  # noqa: SLF001 - not offered otherwise


def reason(exc: Exception) -> str:
    """What libarchive said, on one line."""
    said = exc.msg if isinstance(exc, libarchive.ArchiveError) else str(exc)
    if isinstance(said, bytes):
        said = said.decode("utf-8", "replace")
    return f"{' '.join((said or type(exc).__name__).split()):.200}"
