"""Uploads next to each other, next to other processes, and given up at the worst moment."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import ssdeep

from cuckoo_api.artefacts import Artefacts, keep, upload
from cuckoo_api.model.sample import NewSample

pytestmark = pytest.mark.slow

ELF = Path("/bin/true").read_bytes()


@pytest.fixture
async def artefacts(tmp_path: Path) -> AsyncIterator[Artefacts]:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    yield artefacts
    await artefacts.close()


async def send(artefacts: Artefacts, data: bytes, piece: int = 64 << 10) -> NewSample:
    async with artefacts.receive(max_size=1 << 30) as incoming:
        for start in range(0, len(data), piece):
            await incoming.write(data[start : start + piece])
        return await incoming.finish()


@pytest.mark.parametrize("size", [upload.BLOCK - 1, upload.BLOCK, upload.BLOCK + 1, 700_001])
async def test_small_and_large_ones_are_described_alike(artefacts: Artefacts, size: int) -> None:
    data = (ELF * (size // len(ELF) + 1))[:size]
    sample = await send(artefacts, data)
    assert sample == NewSample(
        md5=hashlib.md5(data).hexdigest(),
        sha1=hashlib.sha1(data).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        sha512=hashlib.sha512(data).hexdigest(),
        crc32=f"{zlib.crc32(data):08X}",
        ssdeep=ssdeep.hash(data),
        file_size=size,
        file_type=sample.file_type,
    )
    assert sample.file_type.startswith("ELF 64-bit")
    assert artefacts.binary(sample.sha256).read_bytes() == data


@pytest.mark.parametrize("size", [5, 700_000])
async def test_what_is_there_is_kept_and_what_is_damaged_is_replaced(
    artefacts: Artefacts, tmp_path: Path, size: int
) -> None:
    data = b"x" * size
    path = artefacts.binary((await send(artefacts, data)).sha256)
    first = path.stat().st_ino
    await send(artefacts, data)
    assert path.stat().st_ino == first
    path.write_bytes(data[:-1])
    await send(artefacts, data)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path / "binaries") == [path.name]


async def test_many_at_once_are_each_themselves(artefacts: Artefacts, tmp_path: Path) -> None:
    datas = [bytes([n]) * (1000 + n * 30_000) for n in range(14)]
    samples = await asyncio.gather(*(send(artefacts, data) for data in datas * 2))
    assert [s.sha256 for s in samples] == [hashlib.sha256(d).hexdigest() for d in datas * 2]
    assert sorted(os.listdir(tmp_path / "binaries")) == sorted({s.sha256 for s in samples})


async def test_an_upload_of_a_living_process_is_no_leftover(
    artefacts: Artefacts, tmp_path: Path
) -> None:
    async with artefacts.receive(max_size=1 << 30) as incoming:
        await incoming.write(b"y" * upload.BLOCK)
        (tmp_path / "binaries" / ".incoming-dead").write_bytes(b"half")
        other = Artefacts(tmp_path)
        await other.open()
        await other.close()
        assert len(os.listdir(tmp_path / "binaries")) == 1, "the dead one went, the living stayed"
        sample = await incoming.finish()
    assert artefacts.binary(sample.sha256).stat().st_size == upload.BLOCK


@pytest.mark.parametrize("size", [5, 700_000])
async def test_a_client_that_hangs_up_at_the_end_leaves_nothing(
    artefacts: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    loop, publish = asyncio.get_running_loop(), keep.publish
    reached, go_on = asyncio.Event(), threading.Event()

    def slow_publish(*arguments: Any) -> None:
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(10)
        publish(*arguments)

    discarded_late: list[bool] = []
    discard = upload.Upload.discard

    async def watched_discard(self: upload.Upload) -> None:
        discarded_late.append(go_on.is_set())
        await discard(self)

    for module in (keep, upload):
        monkeypatch.setattr(module, "publish", slow_publish)
    monkeypatch.setattr(upload.Upload, "discard", watched_discard)
    task = asyncio.create_task(send(artefacts, b"z" * size))
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert discarded_late == [True], "the file was closed under the thread's hands"
    assert os.listdir(tmp_path / "binaries") == []


async def test_no_descriptor_is_leaked(artefacts: Artefacts) -> None:
    await send(artefacts, b"warm")
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"a", b"a", b"b" * 700_000, b"b" * 700_000):
        await send(artefacts, data)
    async with artefacts.receive(max_size=1 << 30) as incoming:
        await incoming.write(b"c" * 700_000)
    folder = artefacts.analysis(1)
    await folder.create(b"{}")
    folder.open("task.json").close()
    assert folder.screenshots() == []
    assert len(os.listdir("/proc/self/fd")) == before
