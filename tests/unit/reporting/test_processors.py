"""The smaller parts of a report, and what hostile folders do to them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import ssdeep
import tlsh

from cuckoo_api.model.sample import Sample
from cuckoo_api.reporting import evidence as evidence_module
from cuckoo_api.reporting import urls
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence, NotRegular
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors import (
    debug,
    dropped,
    metadata,
    procmemory,
    screenshots,
    static,
    strings,
    target,
)
from cuckoo_api.reporting.urls import UrlFinder

pytestmark = pytest.mark.slow

Put = Callable[[bytes], None]

WIDE = "\xffhttps://wide.test:8443/p\xff".encode("utf-16-le")


def test_a_file_target_is_named_hashed_and_typed(
    sample: Put, evidence: Evidence, job: Job, notes: Notes
) -> None:
    sample(b"hello")

    section = target.run(evidence, job, notes)

    file = section["file"]
    assert section["category"] == "file"
    assert file["name"] == "demo-sample.sh"
    assert (file["size"], file["crc32"]) == (5, "3610A686")
    assert file["md5"] == hashlib.md5(b"hello").hexdigest()
    assert file["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert file["type"].startswith("ASCII text")
    assert file["yara"] == []
    assert file["path"] == f"storage/binaries/{file['sha256']}"


def test_a_target_s_similarity_hashes_and_addresses(
    sample: Put, evidence: Evidence, job: Job, notes: Notes
) -> None:
    text = b"".join(b"line %d of a text that differs a little each time\n" % n for n in range(90))
    sample(text + b'<a href="HTTP://one.test/a?b=1">, (ftp://two.test/x). ' + WIDE)

    file = target.run(evidence, job, notes)["file"]

    assert tlsh.diff(file["tlsh"], tlsh.hash(text)) < 50
    assert ssdeep.compare(file["ssdeep"], ssdeep.hash(text)) > 80
    assert file["urls"] == ["http://one.test/a?b=1", "ftp://two.test/x", "https://wide.test:8443/p"]


@pytest.mark.parametrize("content", [b"", b"too short", b"a" * 5000])
def test_what_has_no_tlsh(
    content: bytes, sample: Put, evidence: Evidence, job: Job, notes: Notes
) -> None:
    sample(content)

    assert target.run(evidence, job, notes)["file"]["tlsh"] is None


def test_an_address_is_found_once_however_the_file_is_cut() -> None:
    content = (
        b"\0xhttp://no.test/ news://no.test/ wss://a.test/s http://a.test http://a.test/." + WIDE
    )
    whole, cut = UrlFinder(), UrlFinder()
    whole.feed(content)
    for place in range(0, len(content), 7):
        cut.feed(content[place : place + 7])
    for finder in (whole, cut):
        finder.finish()

    assert sorted(cut.urls) == sorted(whole.urls)
    assert whole.urls == [
        "wss://a.test/s", "http://a.test", "http://a.test/", "https://wide.test:8443/p",
    ]  # fmt: skip


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "MAX_URLS", 2)
    finder = UrlFinder()
    for number in range(9):
        finder.feed(b"http://h%d.test/ " % number * 500)
    finder.finish()

    assert finder.urls == ["http://h0.test/", "http://h1.test/"]


def test_a_target_that_is_gone_is_what_was_submitted(
    evidence: Evidence, job: Job, notes: Notes
) -> None:
    known = Sample(
        id=1, md5="m", sha1="s", sha256="x", sha512="y", crc32="C", ssdeep=None,
        file_size=9, file_type="data",
    )  # fmt: skip

    section = target.run(evidence, msgspec.structs.replace(job, sample=known), notes)

    assert section["file"]["sha256"] == "x"
    assert notes.lines == ["target: the sample cannot be read: No such file or directory"]


def test_a_url_and_an_archive(sample: Put, evidence: Evidence, job: Job, notes: Notes) -> None:
    sample(b"hello")
    url = msgspec.structs.replace(job, category="url", target="http://e/")
    member = msgspec.structs.replace(
        job, category="archive", target="/tmp/a.zip", filename="in\\side.exe"
    )

    assert target.run(evidence, url, notes) == {"category": "url", "url": "http://e/"}
    section = target.run(evidence, member, notes)
    assert section["archive"] == {"name": "a.zip"}
    assert section["file"]["name"] == "side.exe"


def test_an_elf_file(sample: Put, evidence: Evidence, job: Job, notes: Notes) -> None:
    program = shutil.which("true")
    assert program is not None
    sample(Path(program).read_bytes())

    elf = static.run(evidence, job, notes)["elf"]

    assert elf["header"]["class"] in ("ELF64", "ELF32")
    assert elf["interpreter"].startswith("/lib")
    assert any(name.startswith("libc.") for name in elf["libraries"])
    assert "exit" in " ".join(elf["imports"])
    text = next(item for item in elf["sections"] if item["name"] == ".text")
    assert 4 < text["entropy"] < 8
    assert "EXECINSTR" in text["flags"]


def test_an_elf_file_that_is_none(sample: Put, evidence: Evidence, job: Job, notes: Notes) -> None:
    sample(b"\x7fELF" + b"\xff" * 200)

    section = static.run(evidence, job, notes)

    assert section["elf"] == {} or section["elf"]["sections"] == []


def test_strings_across_the_pieces_of_a_file(
    sample: Put, evidence: Evidence, job: Job, notes: Notes
) -> None:
    border = (1 << 20) - 3
    content = b"abc\0first\0" + "wide text".encode("utf-16-le") + b"\0\0"
    content += bytes(border - len(content)) + b"on-the-border" + b"\0first\0last"
    sample(content)

    assert strings.run(evidence, job, notes) == ["first", "wide text", "on-the-border", "last"]


def test_strings_are_bounded(
    sample: Put, evidence: Evidence, job: Job, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strings, "MAX_STRINGS", 2)
    sample(b"aaaa\0bbbb\0cccc\0" + b"d" * 5000)

    assert strings.run(evidence, job, notes) == ["aaaa", "bbbb"]
    assert notes.lines == ["strings: cut at 2"]


def test_dropped_files_with_their_origin(
    folder: Path, evidence: Evidence, job: Job, notes: Notes
) -> None:
    (folder / "files" / "1_tool").write_bytes(b"hello")
    (folder / "files" / "2_x").write_bytes(b"")
    (folder / "files.json").write_bytes(
        b'{"path": "files/1_tool", "filepath": "/tmp/to ol", "pids": [4, 5]}\n'
        b'not json\n{"path": 5}\n{"path": "files/\xff"}\n'
    )

    first, second = dropped.run(evidence, job, notes)

    assert (first["name"], first["filepath"], first["pids"]) == ("to ol", "/tmp/to ol", [4, 5])
    assert (first["path"], first["size"]) == ("files/1_tool", 5)
    assert first["sha1"] == hashlib.sha1(b"hello").hexdigest()
    assert (second["name"], second["type"], second["size"]) == ("2_x", "empty", 0)
    assert notes.lines == ["files.json: 3 lines were not understood"]


def test_links_fifos_and_folders_are_no_files(
    folder: Path, evidence: Evidence, job: Job, notes: Notes, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "files" / "link").symlink_to(secret)
    os.mkfifo(folder / "files" / "fifo")
    (folder / "files" / "folder").mkdir()
    (folder / "analysis.log").symlink_to(secret)
    (folder / "files.json").symlink_to(secret)
    (folder / "memory").rmdir()
    (folder / "memory").symlink_to(tmp_path)
    (tmp_path / "12-1.dmp").write_text("x")
    os.mkfifo(folder / "dump.pcap")

    assert dropped.run(evidence, job, notes) == []
    assert debug.run(evidence, job, notes)["log"] == []
    assert procmemory.run(evidence, job, notes) == []
    assert metadata.run(evidence, job, notes) == {"output": {}}
    for name in ("files/link", "memory/12-1.dmp"):
        with pytest.raises(OSError, match=r"symbolic link|Not a directory"), evidence.open(name):
            pass
    for name in ("files/fifo", "files/folder", "../../../etc/passwd", "/etc/passwd", ""):
        with pytest.raises(NotRegular), evidence.open(name):
            pass


def test_no_more_than_the_limit_is_read(folder: Path) -> None:
    (folder / "big").write_bytes(b"x" * 100)

    with Evidence(folder, 10).open("big") as source:
        assert b"".join(source.chunks()) == b"x" * 10
        assert source.truncated
        source.rewind()
        assert source.read(4) == b"xxxx"


def _core(count: int = 2, files: int = 1, kind: int = 4) -> bytes:
    """A core file of a page of code, a page of data that was not kept, and a note."""
    names = b"/usr/bin/evil\0"
    body = struct.pack("<QQ", files, 4096) + struct.pack("<QQQ", 0x400000, 0x401000, 0) + names
    note = struct.pack("<III", 5, len(body), 0x46494C45) + b"CORE\0\0\0\0" + body
    entries = [
        struct.pack("<IIQQQQQQ", 4, 4, 232, 0, 0, len(note), 0, 4),
        struct.pack("<IIQQQQQQ", 1, 5, 4096, 0x400000, 0, 4096, 4096, 4096),
        struct.pack("<IIQQQQQQ", 1, 6, 8192, 0x500000, 0, 0, 4096, 4096),
    ]
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return (head + b"".join(entries) + note).ljust(4096, b"\0") + b"\x90" * 4096


def test_a_dump_shows_its_regions(folder: Path, evidence: Evidence, job: Job, notes: Notes) -> None:
    (folder / "memory" / "5-1.dmp").write_bytes(_core(3))
    line = {"path": "memory/5-1.dmp", "filepath": "/usr/bin/evil", "pids": [5], "size": 8192}
    (folder / "files.json").write_text(json.dumps(line) + "\n")
    [dump] = procmemory.run(evidence, job, notes)
    assert dump["filepath"] == "/usr/bin/evil"
    assert dump["regions"] == [
        {
            "addr": "0x400000",
            "end": "0x401000",
            "size": 4096,
            "kept": 4096,
            "offset": 4096,
            "protect": "r-x",
            "path": "/usr/bin/evil",
        }
    ]


def test_addresses_in_files_that_were_mapped_are_no_news(
    folder: Path, evidence: Evidence, job: Job, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "CHUNK", 1000)  # the ends of chunks lie anywhere
    core = bytearray(_core(3))
    core[4096 + 900 : 4096 + 1300] = b"http://in.the.file.test/x ".ljust(400, b"\0")
    core += b"\0" * 950 + b"http://in.memory.test/" + bytes(200)
    (folder / "memory" / "5-1.dmp").write_bytes(core)
    [dump] = procmemory.run(evidence, job, notes)
    assert dump["urls"] == ["http://in.memory.test/"]
    # the same without its table is read whole
    (folder / "memory" / "5-1.dmp").write_bytes(b"x" + core[1:])
    [dump] = procmemory.run(evidence, job, notes)
    assert dump["urls"] == ["http://in.the.file.test/x", "http://in.memory.test/"]


@pytest.mark.parametrize(
    "data",
    [
        _core(3)[:40],
        _core(3)[:130],
        _core(3)[:250],
        _core(3, files=1 << 60),
        _core(60000),
        _core(3, kind=2),
        b"\x7fELF",
    ],
)
def test_a_broken_dump_is_listed_all_the_same(
    folder: Path, evidence: Evidence, job: Job, notes: Notes, data: bytes
) -> None:
    (folder / "memory" / "5-1.dmp").write_bytes(data)
    [dump] = procmemory.run(evidence, job, notes)
    assert dump["size"] == len(data)
    assert all(region["path"] == "" for region in dump["regions"])


def test_pictures_dumps_and_logs(folder: Path, evidence: Evidence, job: Job, notes: Notes) -> None:
    for name in ("0002.jpg", "0001.jpg", "x.jpg", "0003.png"):
        (folder / "shots" / name).write_bytes(b"")
    (folder / "memory" / "12-1.dmp").write_bytes(b"\0http://in.memory.test/".ljust(36, b"\0"))
    (folder / "memory" / "notes.txt").write_bytes(b"abc")
    (folder / "analysis.log").write_bytes(b"one\r\ntwo \xff\n")

    assert [shot["path"] for shot in screenshots.run(evidence, job, notes)] == [
        "shots/0001.jpg",
        "shots/0002.jpg",
    ]
    assert procmemory.run(evidence, job, notes) == [
        {
            "pid": 12,
            "num": 1,
            "name": "12-1",
            "file": "memory/12-1.dmp",
            "size": 36,
            "filepath": "",
            "regions": [],
            "yara": [],
            "urls": ["http://in.memory.test/"],
        }
    ]
    assert debug.run(evidence, job, notes) == {
        "log": ["one", "two \\xff"],
        "cuckoo": [],
        "action": [],
    }
