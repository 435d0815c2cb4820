"""Small uploads that come together: processes keep them, and may die of them."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from cuckoo_api.artefacts import Artefacts, keepers
from cuckoo_api.confinement import confinement
from cuckoo_api.model.sample import NewSample

pytestmark = pytest.mark.slow
REAL = keepers.start_process


@pytest.fixture(autouse=True)
def _they_are_processes(
    _uploads_are_looked_at_by_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "start_process", REAL)


@pytest.fixture
async def artefacts(tmp_path: Path) -> AsyncIterator[Artefacts]:
    """With its processes running: a crowd came by before."""
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    await send_all(artefacts, [b"a crowd", b"of two"])
    await until(lambda: len(ready(artefacts)) == keepers.COUNT)
    yield artefacts
    await artefacts.close()


def ready(artefacts: Artefacts) -> list[int]:
    """The processes that are of use."""
    return [k.pid for k in artefacts._workshop.keepers._all if k.ready.done()]


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.01)


async def send(artefacts: Artefacts, data: bytes) -> NewSample:
    async with artefacts.receive(max_size=1 << 30) as incoming:
        await incoming.write(data)
        return await incoming.finish()


async def send_all(artefacts: Artefacts, datas: list[bytes]) -> list[NewSample]:
    return await asyncio.gather(*(send(artefacts, data) for data in datas))


async def test_uploads_one_by_one_start_one_process(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    for data in (b"one", b"after", b"the", b"other"):
        await send(artefacts, data)
    assert len(ready(artefacts)) == 1
    await artefacts.close()


async def test_in_a_crowd_they_say_the_same_but_for_what_is_made_later(
    artefacts: Artefacts, tmp_path: Path
) -> None:
    elf = Path("/bin/true").read_bytes()[:20_000]
    datas = [b"x", elf, b"y" * (keepers.BLOCK - 1), *(b"%d" % n for n in range(40))]
    samples = await send_all(artefacts, datas)
    alone = Artefacts(tmp_path / "alone")
    await alone.open()
    assert samples[0].ssdeep is not None, "it came first, and was alone"
    for data, sample in zip(datas[1:], samples[1:], strict=True):
        assert artefacts.binary(sample.sha256).read_bytes() == data
        assert sample.ssdeep is None
        fuzzy = await artefacts.fuzzy_hash(sample.sha256)
        assert msgspec.structs.replace(sample, ssdeep=fuzzy) == await send(alone, data)
    await alone.close()


async def test_the_same_file_twice_at_once_is_one(artefacts: Artefacts, tmp_path: Path) -> None:
    before = len(os.listdir(tmp_path / "binaries"))
    samples = await send_all(artefacts, [b"the same"] * 8)
    assert len({sample.sha256 for sample in samples}) == 1
    assert len(os.listdir(tmp_path / "binaries")) == before + 1


async def test_nobody_removes_what_one_of_them_keeps(artefacts: Artefacts) -> None:
    async with artefacts.receive(max_size=100) as incoming:
        await incoming.write(b"kept")
        sample = await incoming.finish()
        with artefacts.binary(sample.sha256).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with artefacts.binary(sample.sha256).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_server_has_no_parser_of_uploads_and_screenshots() -> None:
    found = (
        "import sys, cuckoo_api.server.app\n"
        "print({'magic', 'ssdeep', 'PIL', 'libarchive', 'dpkt', 'lief'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", found], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


async def test_they_are_confined(artefacts: Artefacts) -> None:
    """What that is worth is tested where reports are made; here, that it is so here as well."""
    holding = {layer.name for layer in confinement() if layer.holds}
    for pid in ready(artefacts):
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1\n" in status
        assert ("Seccomp:\t2\n" in status) == ("seccomp" in holding)


async def test_they_look_at_screenshots(artefacts: Artefacts, tmp_path: Path) -> None:
    raw, jpeg = tmp_path / "raw", tmp_path / "jpeg"
    raw.write_bytes(b"P6\n800 600\n255\n" + random.Random(1).randbytes(800 * 600 * 3))
    verdict, digest = (await artefacts.look_at_screen(raw, jpeg, None)).split()
    assert verdict == "new"
    assert jpeg.read_bytes().startswith(b"\xff\xd8")
    assert jpeg.stat().st_size > keepers.BLOCK, "more than it may keep of an upload"
    assert await artefacts.look_at_screen(raw, jpeg, raw) == f"old {digest}"
    raw.write_bytes(b"P6\n80000 60000\n255\n")
    assert (await artefacts.look_at_screen(raw, jpeg, None)).startswith("bad ")


@pytest.mark.parametrize("datas", [[b"#!/bin/sh\n"], [b"#!/bin/sh\n#1", b"#!/bin/sh\n#2"]])
async def test_what_one_dies_of_is_kept_all_the_same(
    artefacts: Artefacts, datas: list[bytes]
) -> None:
    """As libmagic might die of a hostile file: nobody else looks at it as well."""
    victims = ready(artefacts)
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    sending = asyncio.create_task(send_all(artefacts, datas))
    await until(lambda: sum(k.load for k in artefacts._workshop.keepers._all) == len(datas))
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for data, sample in zip(datas, await sending, strict=True):
        assert sample.sha256 == hashlib.sha256(data).hexdigest()
        assert (sample.file_type, sample.ssdeep) == ("data", None)
    await until(lambda: artefacts._workshop.keepers._all == [])
    await send_all(artefacts, [b"a new", b"crowd"])
    await until(lambda: len(ready(artefacts)) == keepers.COUNT)
    assert (await send(artefacts, b"#!/bin/sh\n#")).file_type.startswith("POSIX shell script")


async def test_one_that_does_not_come_back_is_ended(
    artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in ready(artefacts):
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(keepers, "DEADLINE", 0.1)
    sample = await send(artefacts, b"#!/bin/sh\n")
    assert (sample.file_type, sample.ssdeep) == ("data", None)


async def test_a_full_disk_is_told_with_its_reason(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "binaries"
    folder.rename(tmp_path / "away")  # they fail, then the server does, and says why
    with pytest.raises(FileNotFoundError):
        await send(artefacts, b"no place")
    (tmp_path / "away").rename(folder)
    await send(artefacts, b"a place")


async def test_none_is_left_after_the_end(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path)
    await artefacts.open()
    await send_all(artefacts, [b"a crowd", b"of two"])
    await until(lambda: len(ready(artefacts)) == keepers.COUNT)
    pids = ready(artefacts)
    descriptors = len(os.listdir("/proc/self/fd"))
    await artefacts.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == descriptors - keepers.COUNT
