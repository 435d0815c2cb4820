"""Archives of every kind, made on the spot, and what the process that opens them would send."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libarchive
import magic
import pyzipper

from cuckoo_api.analysis import frames
from cuckoo_api.analysis.unpack import take_apart
from cuckoo_api.reporting.archives import archive_kind

EXE = Path("/bin/true").read_bytes()[:3000]
"""What libmagic takes for a program."""

Files = dict[str, bytes]


def zipped(files: Files, *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A plain zip file."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def aes_zipped(files: Files, password: str) -> bytes:
    """A zip file as 7-Zip and malware exchanges encrypt it."""
    made = io.BytesIO()
    with pyzipper.AESZipFile(
        made, "w", compression=pyzipper.ZIP_DEFLATED, encryption=pyzipper.WZ_AES
    ) as archive:
        archive.setpassword(password.encode())
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def written(files: Files, form: str, filter_name: str | None = None, **how: Any) -> bytes:
    """An archive that libarchive writes."""
    made = io.BytesIO()
    with libarchive.custom_writer(made.write, form, filter_name, **how) as archive:
        for name, content in files.items():
            archive.add_file_from_memory(name, len(content), content)
    return made.getvalue()


def rar4(files: Files) -> bytes:
    """A RAR file of version 4 whose members are stored."""
    made = b"Rar!\x1a\x07\x00" + _rar4_block(0x73, 0, b"\0" * 6)
    for name, content in files.items():
        head = struct.pack(
            "<IIBIIBBHI", len(content), len(content), 3, zlib.crc32(content), 0, 20, 0x30,
            len(name), 0o100644,
        )  # fmt: skip
        made += _rar4_block(0x74, 0x8000, head + name.encode()) + content
    return made + _rar4_block(0x7B, 0x4000, b"")


def _rar4_block(kind: int, flags: int, rest: bytes) -> bytes:
    body = struct.pack("<BHH", kind, flags, 7 + len(rest)) + rest
    return struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body


def rar5(files: Files) -> bytes:
    """A RAR file of version 5 whose members are stored."""
    made = b"Rar!\x1a\x07\x01\x00" + _rar5_block(b"\x01\x00\x00")
    for name, content in files.items():
        size = _vint(len(content))
        head = b"\x02\x02" + size + b"\x04" + size + _vint(0o100644)
        head += struct.pack("<I", zlib.crc32(content)) + b"\x00\x01"
        made += _rar5_block(head + _vint(len(name)) + name.encode()) + content
    return made + _rar5_block(b"\x05\x00\x00")


def _rar5_block(head: bytes) -> bytes:
    body = _vint(len(head)) + head
    return struct.pack("<I", zlib.crc32(body)) + body


def _vint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def cab(files: Files) -> bytes:
    """A cabinet whose members are stored."""
    data = b"".join(files.values())
    entries, offset = b"", 0
    for name, content in files.items():
        entries += struct.pack("<IIHHHH", len(content), offset, 0, 0x5A21, 0, 0x20)
        entries += name.encode() + b"\0"
        offset += len(content)
    start = 36 + 8 + len(entries)
    block = struct.pack("<IHH", 0, len(data), len(data)) + data
    head = struct.pack(
        "<4sIIIIIBBHHHHH", b"MSCF", 0, start + len(block), 0, 44, 0, 3, 1, 1, len(files), 0, 0, 0
    )
    return head + struct.pack("<IHH", start, 1, 0) + entries + block


LOCKED_7Z = base64.b85decode(
    "H+sCUCma9-(_7U<i2wiq000006aWAK00000sWMo(2~iZ7{r3A%%~&`2f^ZpwD@~X?<JJqw3ihfLzNWo40RUtH1O@;B2"
    "_OmqMQ_WF00#>J00JZi@dp7CQxC7s1+$M=y29BQeDtOsFcu*p0T=-Q3>zc>2nqo!fvC*@00jXN4FF*PE&yc!cmQPp00"
    "0yU0RSLx%ZDy}-2oK_0RSL?fPnx202c-z0SRdU2MYlJ0U;p)7z||q00"
)
"""A 7z file with ``a.exe``, encrypted with ``infected``; nothing installed here writes such."""


class Told:
    """What the process sent: whole members, those that broke off, and notes."""

    def __init__(self) -> None:
        self.members: list[tuple[str, bytes]] = []
        self.notes: list[str] = []
        self.ended = b""
        self._open: tuple[str, bytearray] | None = None

    def send(self, letter: bytes, content: bytes) -> None:
        """Take one frame; only what the protocol allows."""
        assert not self.ended
        assert len(content) <= frames.BLOCK
        match letter:
            case frames.MEMBER:
                assert self._open is None
                self._open = (content.decode(), bytearray())
            case frames.DATA:
                assert self._open is not None
                self._open[1].extend(content)
            case frames.END | frames.BROKEN:
                assert self._open is not None
                name, data = self._open
                self._open = None
                if letter == frames.END:
                    self.members.append((name, bytes(data)))
                elif content:
                    self.notes.append(content.decode())
            case frames.NOTE:
                assert self._open is None
                self.notes.append(content.decode())
            case frames.DOCUMENT | frames.DONE:
                assert self._open is None
                self.ended = letter
            case _:
                raise AssertionError(letter)


def opened(path: Path, content: bytes, *passwords: str, kind: Sequence[str] = ()) -> Told:
    """Take an archive apart as the process does, in this one. ``kind``: not as libmagic says."""
    path.write_bytes(content)
    found = archive_kind(magic.from_buffer(content))
    assert kind or found is not None, magic.from_buffer(content)
    told = Told()
    request = frames.Request(
        path=str(path),
        formats=list(kind or (found.formats if found else ())),
        filters=list(found.filters if found else ()),
        passwords=list(passwords),
        parent=0,
        memory=0,
        cpu=0,
    )
    take_apart(request, told.send)
    assert told.ended
    return told
