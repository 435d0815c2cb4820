"""Archives, bombs, broken workers: what is taken, what is refused, and that nothing else stays."""

from __future__ import annotations

import asyncio
import os
import sys
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from archivekit import EXE, aes_zipped, opened, written, zipped
from cuckoo_api.analysis import archive, frames
from cuckoo_api.analysis.archive import WORKER, Contents, Refused, Unpacker
from cuckoo_api.analysis.filekinds import is_worth_running
from cuckoo_api.analysis.holding import Holding
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.confinement import confinement
from cuckoo_api.settings import ArchivesSection

pytestmark = pytest.mark.slow

HOLDING = {layer.name for layer in confinement() if layer.holds}
MAX_UPLOAD = 64 << 20
SMALL = zipped({"x": b"x"})
"""An archive for workers that do not look at it."""


CONFINED = """
import ctypes
from cuckoo_api.analysis import unpack

def take_apart(request, send):
    deadly = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(deadly))  # PR_GET_PDEATHSIG
    send(b"n", b"Its parent's death sends signal %d" % deadly.value)
    for handle in handles:  # of files that it may not open any more
        for line in handle:
            if line.startswith(("Max", "NoNewPrivs", "Seccomp:")):
                send(b"n", " ".join(line.split()).encode())
    for path in ("/etc/passwd", "/etc/shadow"):
        try:
            open(path)
        except OSError as exc:
            send(b"n", f"{path}: {exc.strerror}".encode())
    send(b"z", b"")

handles = [open(f"/proc/self/{name}") for name in ("limits", "status")]
unpack.take_apart = take_apart
unpack.main()
"""
"""The worker, telling its own limits."""


@dataclass
class Rig:
    """Opens archives, each in a submission of its own that keeps nothing."""

    artefacts: Artefacts
    storage: Path
    worker: Sequence[str] = WORKER
    max_upload: int = MAX_UPLOAD
    limits: dict[str, Any] = field(default_factory=dict)

    async def unpack(self, *contents: bytes, name: str = "bundle.zip") -> Contents:
        """What the last of the archives holds."""
        async with Holding(self.artefacts, self.forget, max_size=self.max_upload) as holding:
            unpacker = Unpacker(holding, ArchivesSection(**self.limits), worker=self.worker)
            for content in contents:
                upload = await holding.receive()
                await upload.write(content)
                found = await unpacker.unpack(name, await holding.finish(upload))
        return found

    async def forget(self, sha256: str) -> None:
        (self.storage / "binaries" / sha256).unlink()

    async def refusal(self, *contents: bytes) -> str:
        """The sentence with which the last one is refused; nothing of it stays."""
        with pytest.raises(Refused) as caught:
            await self.unpack(*contents)
        assert list((self.storage / "binaries").iterdir()) == []
        return str(caught.value)

    def acts(self, script: str) -> None:
        """Have another worker: a few lines of Python that run once the request is read."""
        self.worker = (
            sys.executable, "-I", "-S", "-c",
            f"import os, signal, sys; sys.stdin.read(); out = sys.stdout.buffer\n{script}",
        )  # fmt: skip

    def sends(self, *parts: tuple[bytes, bytes]) -> None:
        """Have a worker that sends these frames and ends."""
        sent = b"".join(frames.HEADER.pack(letter, len(data)) + data for letter, data in parts)
        self.acts(f"out.write({sent!r})")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    yield Rig(artefacts, tmp_path)
    await artefacts.close()


def member(name: str, content: bytes) -> list[tuple[bytes, bytes]]:
    return [(frames.MEMBER, name.encode()), (frames.DATA, content), (frames.END, b"")]


DONE = (frames.DONE, b"")


# -- the real worker ----------------------------------------------------------------------------


async def test_archives_in_archives_are_opened_down_to_the_depth(rig: Rig) -> None:
    deep = zipped({"too-deep.exe": EXE})
    inner = aes_zipped({"c.exe": EXE + b"c", "deep.zip": deep}, "secret")
    middle = written({"b.exe": EXE + b"b", "inner.zip": inner}, "ustar", "gzip")
    rig.limits = {"max_depth": 3, "passwords": ("no", "secret")}
    found = await rig.unpack(zipped({"a.exe": EXE, "readme.txt": b"hello\n", "dir/m.tgz": middle}))
    assert [(one.name, one.sample.file_size) for one in found.members] == [
        ("a.exe", len(EXE)),
        ("dir/m.tgz/b.exe", len(EXE) + 1),
        ("dir/m.tgz/inner.zip/c.exe", len(EXE) + 1),
    ]
    assert found.notes == [
        (
            "dir/m.tgz/inner.zip: 'deep.zip' was left out: it is an archive at a depth of more "
            "than 3 ([archives] max_depth)"
        )
    ]
    assert list((rig.storage / "binaries").iterdir()) == []


async def test_a_bomb_is_refused_long_before_it_is_unpacked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FREE_SIZE", 1 << 20)
    bomb = zipped({"a.exe": EXE, "zeros.exe": bytes(8 << 20)})
    assert "more than 200 times its size, like a bomb" in await rig.refusal(bomb)


async def test_the_memory_that_an_archive_asks_for_is_limited(rig: Rig) -> None:
    packed = bytearray(written({"a.exe": EXE}, "ustar", "xz"))
    packed[16] = 37  # a dictionary of 1.5 GiB
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    rig.limits = {"memory": 256 << 20}
    found = await rig.unpack(bytes(packed))
    assert found.members == []
    assert "allocate memory" in " ".join(found.notes)


async def test_the_worker_may_write_no_file_gain_no_rights_and_not_outlive_the_server(
    rig: Rig,
) -> None:
    rig.limits = {"memory": 300 << 20, "timeout": 7}
    rig.worker = (sys.executable, "-I", "-c", CONFINED)
    notes = (await rig.unpack(SMALL)).notes
    for expected in (
        "Max cpu time 7 7 seconds",
        "Max file size 0 0 bytes",
        f"Max address space {300 << 20} {300 << 20} bytes",
        "NoNewPrivs: 1",
        *(["Seccomp: 2"] if "seccomp" in HOLDING else []),
        *(["/etc/passwd: Permission denied"] if "landlock" in HOLDING else []),
        "Its parent's death sends signal 9",
    ):
        assert expected in notes


# -- what is counted ----------------------------------------------------------------------------


async def test_too_many_files_are_refused(rig: Rig) -> None:
    rig.limits = {"max_files": 2}
    rig.sends(*member("1", EXE), *member("2", b"text"), *member("3", EXE), DONE)
    assert await rig.refusal(SMALL) == "it holds more than 2 files ([archives] max_files)"


async def test_the_limits_hold_for_all_archives_of_a_submission(rig: Rig) -> None:
    rig.limits = {"max_files": 3}
    rig.sends(*member("1", EXE), *member("2", EXE), DONE)
    assert len((await rig.unpack(SMALL)).members) == 2
    assert "more than 3 files" in await rig.refusal(SMALL, SMALL)


async def test_too_many_bytes_are_refused(rig: Rig) -> None:
    rig.limits = {"max_size": 5000}
    rig.sends(*member("1", EXE), *member("2", EXE), DONE)
    assert await rig.refusal(SMALL) == ("it unpacks to more than 5000 bytes ([archives] max_size)")


async def test_the_ratio_counts_archives_in_archives_together(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FREE_SIZE", 2 * len(EXE))
    rig.limits = {"max_ratio": 1}
    rig.sends(*member("1", EXE), DONE)
    assert len((await rig.unpack(SMALL)).members) == 1
    # each level gives itself once more: no single one is large
    rig.limits |= {"max_depth": 10}
    rig.sends(*member("1", zipped({"x": EXE})), DONE)
    assert "like a bomb" in await rig.refusal(SMALL)


async def test_a_member_larger_than_an_upload_may_be_is_refused(rig: Rig) -> None:
    rig.max_upload = 2000
    rig.sends(*member("1", EXE), DONE)
    assert "larger than 2000 bytes" in await rig.refusal(SMALL)


async def test_a_member_that_comes_again_with_another_password_counts_once(rig: Rig) -> None:
    rig.limits = {"max_files": 1}
    begun = [(frames.MEMBER, b"1"), (frames.BROKEN, b"")]
    rig.sends(*begun, *begun, *member("1", EXE), DONE)
    assert [one.name for one in (await rig.unpack(SMALL)).members] == ["1"]


async def test_no_more_than_some_sentences_are_kept(rig: Rig) -> None:
    rig.sends(*[(frames.NOTE, f"note {n}".encode()) for n in range(100)], DONE)
    notes = (await rig.unpack(SMALL)).notes
    assert notes == [*[f"note {n}" for n in range(20)], "80 more entries were left out"]


# -- names --------------------------------------------------------------------------------------


async def test_a_name_is_made_fit_to_be_an_option(rig: Rig) -> None:
    names = {
        "a.exe,free=yes": "a.exe_free=yes",
        "dir\\b.exe": "dir/b.exe",
        "./b.exe": "b.exe",
        "a\nb\x1b[31m\u202e.exe": "a_b_[31m_.exe",
        "": "bundle",
        "dir/" * 100 + "b.exe": ("dir/" * 100 + "b.exe")[-255:],
    }
    rig.sends(*[part for name in names for part in member(name, EXE)], DONE)
    found = [one.name for one in (await rig.unpack(SMALL)).members]
    assert found == list(names.values())


# -- workers that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)", "pass", "out.write(b'm\\0\\0')"],
)
async def test_a_worker_that_dies_costs_its_archive_only(rig: Rig, script: str) -> None:
    rig.acts(script)
    assert await rig.refusal(SMALL) == "unpacking failed: it broke the process that did it"


@pytest.mark.parametrize(
    "parts",
    [
        [(b"?", b"")],
        [(frames.DATA, b"no member")],
        [(frames.END, b"")],
        [(frames.MEMBER, b"1"), (frames.MEMBER, b"2")],
        [(frames.MEMBER, b"1"), DONE],
    ],
)
async def test_a_worker_that_breaks_the_protocol_is_refused(
    rig: Rig, parts: list[tuple[bytes, bytes]]
) -> None:
    rig.sends(*parts)
    assert await rig.refusal(SMALL) == "unpacking failed: its process sent nonsense"


async def test_a_worker_that_promises_four_gigabytes_is_not_waited_for(rig: Rig) -> None:
    rig.acts("out.write(b'm' + b'\\xff' * 4); out.flush(); signal.pause()")
    assert await rig.refusal(SMALL) == "unpacking failed: its process sent nonsense"


@pytest.mark.parametrize("script", ["", "while True: out.write(b'm\\0\\0\\0\\1xx\\0\\0\\0\\0')"])
async def test_a_worker_that_takes_too_long_is_ended(rig: Rig, tmp_path: Path, script: str) -> None:
    pid = tmp_path / "pid"
    rig.limits = {"timeout": 0.2}
    rig.acts(f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n{script}\nsignal.pause()")
    assert "took longer than 0.2 s" in await rig.refusal(SMALL)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_request_that_is_given_up_ends_its_worker(rig: Rig, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    rig.acts(f"open({str(fifo)!r}, 'w').write(str(os.getpid()))\nsignal.pause()")
    work = asyncio.create_task(rig.unpack(SMALL))
    pid = int(await asyncio.to_thread(fifo.read_text))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list((rig.storage / "binaries").iterdir()) == []


# -- what is worth running ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.exe", "PE32 executable (GUI) Intel 80386, for MS Windows"),
        ("a", "ELF 64-bit LSB executable, x86-64"),
        ("a", "data"),
        ("a", "Python script, ASCII text executable"),
        ("a", "POSIX shell script, ASCII text executable"),
        ("a", "HTML document, ASCII text"),
        ("a.doc", "Composite Document File V2 Document"),
        ("a.rtf", "Rich Text Format data, version 1, ANSI"),
        ("a.odt", "OpenDocument Text"),
        ("a.pdf", "PDF document, version 1.5"),
        ("a.eml", "SMTP mail, ASCII text"),
        ("a.lnk", "MS Windows shortcut"),
        ("a.JS", "ASCII text, with very long lines"),
        ("dir.x/a.ps1", "Unicode text, UTF-16, little-endian text, with CRLF line terminators"),
        ("a.bat", "ASCII text"),
    ],
)
def test_it_is_worth_running(name: str, kind: str) -> None:
    assert is_worth_running(name, kind, 1)


@pytest.mark.parametrize(
    "kind",
    [
        "ASCII text, with CRLF line terminators",
        "UTF-8 Unicode text",
        "Unicode text, UTF-8 text, with no line terminators",
        "Non-ISO extended-ASCII text",
        "ISO-8859 text",
        "C source, ASCII text",
        "JSON text data",
        "CSV text",
        "PNG image data, 16 x 16",
        "JPEG image data, JFIF standard 1.01",
        "PC bitmap, Windows 3.x format",
        "MS Windows icon resource - 1 icon",
        "RIFF (little-endian) data, WAVE audio",
        "Audio file with ID3 version 2.3.0",
        "ISO Media, MP4 Base Media v1",
        "TrueType Font data, 17 tables",
        "very short file (no magic)",
        "empty",
    ],
)
def test_it_is_not_worth_running(kind: str) -> None:
    assert not is_worth_running("a", kind, 1)


def test_what_is_empty_is_never_worth_running() -> None:
    assert not is_worth_running("a.exe", "data", 0)


def test_the_kit_s_program_is_one(tmp_path: Path) -> None:
    assert opened(tmp_path / "a", zipped({"a": EXE})).members == [("a", EXE)]
