"""Uploads are whole or not there; nothing outside an analysis folder is ever served."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import ssdeep

from cuckoo_api.artefacts import Artefacts, write_atomic
from cuckoo_api.model.errors import NotFound, TooLarge, Unavailable


@pytest.fixture
async def artefacts(tmp_path: Path) -> AsyncIterator[Artefacts]:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    yield artefacts
    await artefacts.close()


def kept(root: Path) -> list[str]:
    return sorted(os.listdir(root / "binaries"))


async def test_an_upload_is_hashed_and_kept_once(artefacts: Artefacts, tmp_path: Path) -> None:
    for _ in range(2):
        async with artefacts.receive(max_size=100) as upload:
            await upload.write(b"hel")
            await upload.write(b"lo")
            sample = await upload.finish()
    assert sample.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert sample.md5 == "5d41402abc4b2a76b9719d911017c592"
    assert sample.sha1 == "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d"
    assert sample.sha512 == hashlib.sha512(b"hello").hexdigest()
    assert (sample.crc32, sample.file_size) == ("3610A686", 5)
    assert sample.file_type == "ASCII text, with no line terminators"
    assert sample.ssdeep == ssdeep.hash(b"hello")
    assert kept(tmp_path) == [sample.sha256]
    assert artefacts.binary(sample.sha256.upper()).read_bytes() == b"hello"


async def test_an_empty_file_is_a_sample_too(artefacts: Artefacts) -> None:
    async with artefacts.receive(max_size=100) as upload:
        sample = await upload.finish()
    assert (sample.file_size, sample.file_type) == (0, "empty")
    assert artefacts.binary(sample.sha256).read_bytes() == b""


@pytest.mark.slow
async def test_a_large_upload_needs_little_memory(artefacts: Artefacts) -> None:
    block = os.urandom(64 << 10)
    tracemalloc.start()
    async with artefacts.receive(max_size=1 << 30) as upload:
        for _ in range(256):
            await upload.write(block)
        sample = await upload.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample.file_size == 16 << 20
    assert sample.sha256 == hashlib.sha256(block * 256).hexdigest()
    assert peak < 1 << 20


async def test_too_much_is_refused_and_leaves_nothing(artefacts: Artefacts, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="larger than 300000 bytes") as caught:
        async with artefacts.receive(max_size=300_000) as upload:
            await upload.write(b"x" * 290_000)
            await upload.write(b"x" * 290_000)
    assert caught.value.status == 413
    assert kept(tmp_path) == []


async def test_a_client_that_hangs_up_leaves_nothing(artefacts: Artefacts, tmp_path: Path) -> None:
    started = asyncio.Event()

    async def receive() -> None:
        async with artefacts.receive(max_size=1 << 30) as upload:
            await upload.write(b"x" * (1 << 20))
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(receive())
    await started.wait()
    assert len(kept(tmp_path)) == 1
    task.cancel()
    await asyncio.wait({task})
    assert kept(tmp_path) == []


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_said_and_leaves_nothing(
    artefacts: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, size: int
) -> None:
    def write(handle: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(Unavailable, match="disk is full") as caught:
        async with artefacts.receive(max_size=1 << 30) as upload:
            await upload.write(b"x" * size)
            await upload.finish()
    assert caught.value.status == 503
    assert kept(tmp_path) == []


async def test_leftovers_of_an_earlier_process_go(tmp_path: Path) -> None:
    (tmp_path / "binaries").mkdir()
    (tmp_path / "binaries" / ".incoming-0123").write_bytes(b"half")
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    await artefacts.close()
    assert kept(tmp_path) == []


@pytest.mark.parametrize("name", ["", "zz", "..", "../x", "a" * 63, "e" * 64, "e" * 65, "\0" * 64])
async def test_what_is_no_sample_is_not_found(artefacts: Artefacts, name: str) -> None:
    with pytest.raises(NotFound, match="File not found"):
        artefacts.binary(name)


async def test_a_folder_is_made_afresh(artefacts: Artefacts, tmp_path: Path) -> None:
    async with artefacts.receive(max_size=100) as upload:
        await upload.write(b"hello")
        sample = await upload.finish()
    folder = artefacts.analysis(7)
    await folder.create(b"{}", sample.sha256)
    (folder.path / "files" / "old").write_bytes(b"of the first attempt")
    await folder.create(b'{"id": 7}', sample.sha256)
    assert folder.path == tmp_path / "analyses" / "7"
    assert (folder.path / "binary").read_bytes() == b"hello"
    assert (folder.path / "task.json").read_bytes() == b'{"id": 7}'
    assert sorted(p.name for p in folder.path.iterdir() if p.is_dir()) == [
        "buffer", "extracted", "files", "logs", "memory", "network", "package_files", "reports",
        "shots",
    ]  # fmt: skip
    assert not (folder.path / "files" / "old").exists()


async def test_only_regular_files_inside_are_served(artefacts: Artefacts, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    folder = artefacts.analysis(1)
    await folder.create(b"{}")
    with pytest.raises(NotFound, match="Report not found"):
        folder.report("json")
    (folder.path / "shots" / "0001.jpg").write_bytes(b"jpeg")
    (folder.path / "shots" / "0002.jpg").symlink_to(tmp_path / "secret")
    os.mkfifo(folder.path / "shots" / "0003.jpg")
    (folder.path / "shots" / "notes.txt").write_bytes(b"")
    assert [p.name for p in folder.screenshots()] == ["0001.jpg"]
    for number in ("1", "01", "0001"):
        assert folder.screenshot(number).read_bytes() == b"jpeg"
    for number in ("2", "3", "9", "0", "x", "..", "1/../1", "1" * 30, ""):
        with pytest.raises(NotFound, match="Screenshot not found!"):
            folder.screenshot(number)
    (folder.path / "network").rmdir()
    (folder.path / "network").symlink_to(tmp_path)
    for name in ("../../secret", "network/secret", "/etc/passwd", "files", "files/\0"):
        with pytest.raises(NotFound):
            folder.file(name)


async def test_a_folder_that_is_not_there(artefacts: Artefacts) -> None:
    folder = artefacts.analysis(99)
    assert folder.screenshots() == []
    with pytest.raises(NotFound):
        folder.report("json")


async def test_write_atomic_replaces_or_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    await write_atomic(path, b"one")
    await write_atomic(path, b"two")
    assert path.read_bytes() == b"two"

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Unavailable):
        await write_atomic(path, b"three")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["report.json"]
