"""The process in which an archive is taken apart. It reads, and tells on a pipe what it finds.

Run as ``python -I -m cuckoo_api.analysis.unpack``. It reads one
:class:`~cuckoo_api.analysis.frames.Request` from standard input and writes frames. It makes no
file, under no name: the kernel lets it write none.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libarchive
import msgspec
import pyzipper
from libarchive import ffi

from cuckoo_api.analysis.frames import (
    BLOCK,
    BROKEN,
    DATA,
    DOCUMENT,
    DONE,
    END,
    HEADER,
    MAX_TEXT,
    MEMBER,
    NOTE,
    Request,
)  # fmt: skip
from cuckoo_api.confinement import confine
from cuckoo_api.reporting.archivereader import is_encrypted, opened, reason

Send = Callable[[bytes, bytes], None]

DOCUMENTS = frozenset({"[Content_Types].xml", "META-INF/MANIFEST.MF", "AndroidManifest.xml"})
"""What tells an Office document, a Java or an Android program from other zip files."""
STORED, DEFLATED = 0, 8
AES_MARK = b"\x01\x99"
"""How the extra field begins that an entry has which is encrypted with AES."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive; its blocks are read before the next entry is asked for."""

    name: str
    mode: int
    """Its type, as in ``st_mode``; a hard link is a link like a symbolic one."""
    is_locked: bool
    blocks: Callable[[], Iterable[bytes]]


def main() -> None:
    """Take one archive apart, confined, and end."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    confine(
        parent=request.parent,
        memory=request.memory,
        cpu=request.cpu,
        file_size=0,
        readable=[request.path],
    )
    # the frames get a descriptor of their own: a library may print what it likes
    frames = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(letter: bytes, content: bytes) -> None:
        frame = memoryview(HEADER.pack(letter, len(content)) + content)
        while frame:
            frame = frame[frames.write(frame) :]

    take_apart(request, send)


def take_apart(request: Request, send: Send) -> None:
    """Send every regular file of the archive, and a note for all else that is no folder.

    With each password it is read once more, for the entries that are still locked.
    """
    settled: set[int] = set()
    locked: list[str] = []
    broken = ""
    reader = read_archive
    is_zip = request.formats == ["zip"]
    if is_zip and (directory := _zip_directory(request.path)) is not None:
        if not DOCUMENTS.isdisjoint(info.filename for info in directory):
            send(DOCUMENT, b"")
            return
        if any(AES_MARK in info.extra for info in directory) and all(
            info.compress_type in (STORED, DEFLATED) for info in directory
        ):
            reader = read_aes_zip
    for password in ("", *request.passwords) if is_zip else ("",):
        locked, broken = _send_all(reader(request, password), settled, send)
        if not locked:
            break
    why = "no known password opens it" if is_zip else "only zip files can be decrypted"
    for name in locked:
        send(NOTE, _text(f"{name!r:.200} is encrypted, and {why}"))
    if broken:
        send(NOTE, _text(broken))
    send(DONE, b"")


def _send_all(entries: Iterable[Entry], settled: set[int], send: Send) -> tuple[list[str], str]:
    """Send what is not settled; the names of what is locked, and why the rest is not readable."""
    locked: list[str] = []
    try:
        for number, entry in enumerate(entries):
            if number in settled or stat.S_ISDIR(entry.mode):
                continue
            refusal = _refusal(entry)
            if refusal:
                send(NOTE, _text(refusal))
            elif not _send_one(entry, send):
                locked.append(entry.name)
                continue
            settled.add(number)
    except libarchive.ArchiveError as exc:
        return locked, f"it cannot be read to its end: {reason(exc)}"
    return locked, ""


def _send_one(entry: Entry, send: Send) -> bool:
    """Send a member; False where it is locked for the password."""
    send(MEMBER, _text(entry.name))
    try:
        for block in entry.blocks():
            send(DATA, block)
    except BrokenPipeError:
        raise
    except Exception as exc:  # noqa: BLE001 - the parsers raise what they like for hostile input
        if entry.is_locked:  # a wrong password shows in many ways
            send(BROKEN, b"")
            return False
        send(BROKEN, _text(f"{entry.name!r:.200} cannot be read: {reason(exc)}"))
    else:
        send(END, b"")
    return True


def _refusal(entry: Entry) -> str:
    """Why this entry is none to be taken, or nothing."""
    if not stat.S_ISREG(entry.mode):
        return f"{entry.name!r:.200} was left out: it is {_kind(entry.mode)}, not a file"
    parts = entry.name.replace("\\", "/").split("/")
    if ".." in parts or (entry.name and not parts[0]) or parts[0][1:] == ":":
        return f"{entry.name!r:.200} was left out: its name leads out of the archive"
    return ""


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:MAX_TEXT]


# -- readers --------------------------------------------------------------------------------------


def read_archive(request: Request, password: str) -> Iterator[Entry]:
    """The entries as libarchive reads them."""
    with (
        Path(request.path).open("rb") as file,
        opened(file.fileno(), request.formats, request.filters, password) as archive,
    ):
        for entry in archive:
            name = entry.pathname or ""
            if archive.format_name == b"raw":
                if not archive.filter_names:
                    raise libarchive.ArchiveError("it is no archive of a known kind")
                name = ""  # one compressed file, which has none
            yield Entry(
                name=name if isinstance(name, str) else name.decode("utf-8", "replace"),
                mode=stat.S_IFLNK if entry.islnk else entry.filetype,
                is_locked=is_encrypted(entry),
                blocks=functools.partial(_blocks, archive._pointer),  # noqa: SLF001 - no other way
            )


def _blocks(pointer: int) -> Iterator[bytes]:
    """The present entry's content.

    The binding's own reader takes a warning, a wrong checksum among them, for a length.
    """
    buffer = ctypes.create_string_buffer(BLOCK)
    while (size := ffi.read_data(pointer, buffer, BLOCK)) > 0:
        yield memoryview(buffer)[:size].tobytes()
    if size < 0:
        raise libarchive.ArchiveError(ffi.error_string(pointer))


def read_aes_zip(request: Request, password: str) -> Iterator[Entry]:
    """The entries of a zip file as pyzipper reads them: it knows AES in every build."""
    with pyzipper.AESZipFile(request.path) as archive:
        for info in archive.infolist():
            mode = stat.S_IFDIR if info.is_dir() else stat.S_IFMT(info.external_attr >> 16)
            yield Entry(
                name=info.filename,
                mode=mode or stat.S_IFREG,
                is_locked=bool(info.flag_bits & 1),
                blocks=functools.partial(_zip_blocks, archive, info, password),
            )


def _zip_blocks(
    archive: pyzipper.AESZipFile, info: pyzipper.ZipInfo, password: str
) -> Iterator[bytes]:
    with archive.open(info, pwd=password.encode() or None) as member:
        while block := member.read(BLOCK):
            yield block


def _zip_directory(path: str) -> list[pyzipper.ZipInfo] | None:
    """A zip file's entries; None where the list at its end is missing or broken."""
    try:
        with pyzipper.AESZipFile(path) as archive:
            return list(archive.infolist())
    except Exception:  # noqa: BLE001 - libarchive then has its own try, from the beginning
        return None


if __name__ == "__main__":
    main()
