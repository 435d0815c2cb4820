"""Dumps of Windows processes: which addresses are in them, and how they were protected."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors import procmemory
from cuckoo_api.reporting.processors.formats import windowsdump

COMMIT, PRIVATE, IMAGE = 0x1000, 0x20000, 0x1000000
READ, WRITE, RUN_AND_WRITE, RUN_AND_READ = 0x02, 0x04, 0x40, 0x20
Dumped = Callable[..., dict[str, Any]]


@pytest.fixture
def dumped(folder: Path, evidence: Evidence, job: Job, notes: Notes) -> Dumped:
    def report(data: bytes, name: str = "77-1.dmp") -> dict[str, Any]:
        (folder / "memory" / name).write_bytes(data)
        [dump] = msgspec.json.decode(msgspec.json.encode(procmemory.run(evidence, job, notes)))
        found: dict[str, Any] = dump
        return found

    return report


def record(address: int, data: bytes, protect: int, kind: int = PRIVATE) -> bytes:
    return struct.pack("<QIIII", address, len(data), COMMIT, kind, protect) + data


def minidump(streams: dict[int, bytes], after: bytes = b"") -> bytes:
    """Its head, the directory, each stream, and what these lead to."""
    at = 32 + 12 * len(streams)
    table = b""
    for kind, data in streams.items():
        table += struct.pack("<III", kind, len(data), at)
        at += len(data)
    head = struct.pack("<4sIIIIIQ", b"MDMP", 0xA793, len(streams), 32, 0, 1_700_000_000, 2)
    return head + table + b"".join(streams.values()) + after


def info(*entries: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<IIQ", 16, 48, len(entries)) + b"".join(
        struct.pack("<QQIIQIIII", start, start, 0, 0, size, COMMIT, protect, kind, 0)
        for start, size, protect, kind in entries
    )


def of_windows(name: str = "C:\\Windows\\System32\\a.dll") -> bytes:
    """A dump of all memory: a page of a module, a page after it, and one of the heap."""
    letters = name.encode("utf-16-le")
    known = info(
        (0x10000, 0x1000, READ, IMAGE),
        (0x11000, 0x1000, RUN_AND_WRITE, IMAGE),
        (0x90000, 0x0, WRITE, PRIVATE),
        (0x90000, 0x1000, WRITE, PRIVATE),
    )
    names_at = 32 + 3 * 12 + len(known) + (4 + 108) + (16 + 2 * 16)
    modules = struct.pack("<IQIIII84x", 1, 0x10000, 0x1000, 0, 0, names_at)
    place = names_at + 4 + len(letters)
    memory = struct.pack("<QQQQQQ", 2, place, 0x10000, 0x2000, 0x90000, 0x1000)
    pages = (
        b"http://in.the.system.test/".ljust(0x1000, b"\0")
        + b"http://written.by.it.test/".ljust(0x1000, b"\0")
        + b"http://on.the.heap.test/".ljust(0x1000, b"\0")
    )
    after = struct.pack("<I", len(letters)) + letters + pages
    return minidump({16: known, 4: modules, 9: memory}, after)


def test_a_monitor_s_dump_is_one_region_after_another(dumped: Dumped, tmp_path: Path) -> None:
    data = record(0x400000, b"MZ".ljust(0x1000, b"\0"), RUN_AND_WRITE | 0x100)
    data += record(0x7FFE0000, b"http://in.memory.test/".ljust(0x2000, b"\0"), READ)

    dump = dumped(data)

    assert dump["regions"] == [
        {
            "addr": "0x400000", "end": "0x401000", "size": 0x1000, "kept": 0x1000, "offset": 24,
            "protect": "rwx", "state": COMMIT, "type": PRIVATE, "path": "",
        },
        {
            "addr": "0x7ffe0000", "end": "0x7ffe2000", "size": 0x2000, "kept": 0x2000,
            "offset": 0x1000 + 48, "protect": "r--", "state": COMMIT, "type": PRIVATE, "path": "",
        },
    ]  # fmt: skip
    assert dump["urls"] == ["http://in.memory.test/"]
    # one that breaks off has what came before
    assert [r["kept"] for r in dumped(data[:-0x1F00])["regions"]] == [0x1000, 0x100]
    assert [r["kept"] for r in dumped(data[: 0x1000 + 24 + 23])["regions"]] == [0x1000]


def test_the_only_dump_of_a_process_has_no_number(dumped: Dumped, tmp_path: Path) -> None:
    dump = dumped(record(0x400000, bytes(0x1000), WRITE), "77.dmp")

    assert (dump["pid"], dump["num"], dump["name"]) == (77, 1, "77")
    analysis = Artefacts(tmp_path).analysis(1)
    (analysis.path / "memory").mkdir(parents=True)
    for name in ("77.dmp", "8-1.dmp", "8-2.dmp"):
        (analysis.path / "memory" / name).write_bytes(b"x")
    assert analysis.dumps() == ["77", "8-1", "8-2"]
    assert [analysis.dump(name).name for name in ("77", "8", "8-2")] == [
        "77.dmp", "8-1.dmp", "8-2.dmp",
    ]  # fmt: skip


def test_a_minidump_s_memory_is_cut_where_its_protection_changes(dumped: Dumped) -> None:
    dump = dumped(of_windows())

    system = "C:\\Windows\\System32\\a.dll"
    assert [
        (r["addr"], r["end"], r["kept"], r["protect"], r["type"], r["path"])
        for r in dump["regions"]
    ] == [
        ("0x10000", "0x11000", 0x1000, "r--", IMAGE, system),
        ("0x11000", "0x12000", 0x1000, "rwx", IMAGE, ""),
        ("0x90000", "0x91000", 0x1000, "rw-", PRIVATE, ""),
    ]
    # what lies in a file of the system is no news
    assert dump["urls"] == ["http://written.by.it.test/", "http://on.the.heap.test/"]
    assert len(dumped(of_windows("C:\\x.exe"))["urls"]) == 3


def test_a_small_minidump_says_where_each_range_is(dumped: Dumped) -> None:
    ranges = struct.pack("<IQII", 1, 0x500800, 8, 32 + 12 + 20)

    [region] = dumped(minidump({5: ranges}, b"12345678"))["regions"]

    assert (region["addr"], region["kept"], region["offset"]) == ("0x500800", 8, 64)
    assert (region["protect"], region["state"]) == ("", None), "it does not say"


def test_no_dump_breaks_it(
    dumped: Dumped, evidence: Evidence, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    whole = of_windows()
    for _ in range(100):
        data = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(min(400, len(data) or 1))
            data[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, chance.randbytes(4)))
        (folder / "memory" / "1-1.dmp").write_bytes(data)
        with evidence.open("memory/1-1.dmp") as source:
            for region in windowsdump.regions(source):
                assert 0 < region["kept"] <= len(data)
                assert 0 <= region["offset"] < len(data)
    monkeypatch.setattr(windowsdump, "MAX_REGIONS", 5)
    (folder / "memory" / "1-1.dmp").unlink()
    assert len(dumped(record(0x1000, b"x", READ) * 9)["regions"]) == 5
