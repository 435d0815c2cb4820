"""A backup is made while others write, and is restored whole or not at all."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cuckoo_api.cli.main import main
from cuckoo_api.model.errors import BadInput, ConfigError, Conflict
from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import NewTask, Status
from cuckoo_api.server import archive as form
from cuckoo_api.server.backup import back_up
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.server.restore import BEFORE, restore
from cuckoo_api.store import Store, copy_database

pytestmark = pytest.mark.slow

SAMPLE = b"#!/bin/sh\n"
SHA256 = hashlib.sha256(SAMPLE).hexdigest()
HASHES = NewSample(
    md5="0" * 32, sha1="0" * 40, sha256=SHA256, sha512="0" * 128, crc32="0" * 8, ssdeep=None,
    file_size=len(SAMPLE), file_type="script",
)  # fmt: skip


async def store_of(cwd: Path) -> Store:
    return await Store.open(f"sqlite:///{cwd / 'cuckoo.db'}")


@pytest.fixture
async def cwd(tmp_path: Path, empty_database: Path) -> Path:
    """A working directory with one reported task."""
    cwd = tmp_path / "old"
    folder = cwd / "storage" / "analyses" / "1"
    (folder / "reports").mkdir(parents=True)
    (cwd / "storage" / "binaries").mkdir()
    (cwd / "conf" / "yara").mkdir(parents=True)
    (cwd / "conf" / "cuckoo.conf").write_text("[cuckoo]\napi_token = s3cret\n")
    (cwd / "conf" / "yara" / "own.yar").write_text("rule a { condition: true }")
    (cwd / "storage" / "binaries" / SHA256).write_bytes(SAMPLE)
    (folder / "reports" / "report.json").write_text("{}")
    for path in cwd.rglob("*.*"):
        path.chmod(0o600)
    (cwd / "storage" / "binaries" / SHA256).chmod(0o640)
    (folder / "binary").symlink_to(f"../../binaries/{SHA256}")
    shutil.copy(empty_database, cwd / "cuckoo.db")
    store = await store_of(cwd)
    await store.tasks.submit([NewTask(category="file", target="a.sh")], HASHES)
    await store.tasks.transition(1, Status.PENDING, Status.RUNNING)
    await store.close()
    return cwd


def tree(cwd: Path) -> dict[str, object]:
    """Everything below the units, with contents, links and rights."""
    found: dict[str, object] = {}
    for unit in form.UNITS[1:]:
        for path in sorted((cwd / unit).rglob("*")):
            name = str(path.relative_to(cwd))
            if path.is_symlink():
                found[name] = str(path.readlink())
            elif path.is_file():
                found[name] = (path.read_bytes(), path.stat().st_mode & 0o777)
            else:
                found[name] = "folder"
    return found


@pytest.mark.parametrize("name", ["all.tar.zst", "all.tar.gz"])
async def test_what_was_backed_up_comes_back(cwd: Path, tmp_path: Path, name: str) -> None:
    target, new = tmp_path / name, tmp_path / "new"
    files, _ = back_up(cwd, target)
    head = restore(target, new)

    assert tree(new) == tree(cwd)
    assert files == 5
    assert target.stat().st_mode & 0o777 == 0o600
    assert set(head.units) == set(form.UNITS)
    store = await store_of(new)
    assert await store.tasks.running() == [1], "which the next start puts back in the queue"
    await store.close()
    assert [p.name for at in (cwd, tmp_path) for p in at.iterdir() if p.name[0] == "."] == []


async def test_rows_that_are_written_meanwhile_do_no_harm(cwd: Path, tmp_path: Path) -> None:
    store = await store_of(cwd)
    await store.tasks.submit([NewTask(category="url", target="http://a.example/")])
    waiting = [NewTask(category="url", target="http://b.example/")]

    async def write() -> None:
        for _ in range(50):
            await store.tasks.submit(waiting)

    writing = asyncio.create_task(write())
    await asyncio.to_thread(copy_database, cwd / "cuckoo.db", tmp_path / "copy.db")
    await writing
    await store.close()
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        [(count,)] = copy.execute("SELECT count(*) FROM tasks")
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    copy.close()
    assert 2 <= count <= 52


def test_what_is_left_out_stays_where_it_is_restored(cwd: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.tar.gz"
    back_up(cwd, target, without=["storage/binaries", "storage/analyses"])
    (cwd / "conf" / "cuckoo.conf").write_text("[cuckoo]\n")
    restore(target, cwd, force=True)

    assert "s3cret" in (cwd / "conf" / "cuckoo.conf").read_text()
    assert (cwd / "storage" / "binaries" / SHA256).read_bytes() == SAMPLE
    assert not (cwd / BEFORE).exists()


def test_a_filled_directory_needs_force_and_a_served_one_is_refused(
    cwd: Path, tmp_path: Path
) -> None:
    target = tmp_path / "all.tar.zst"
    back_up(cwd, target)
    before = tree(cwd)
    with pytest.raises(Conflict, match=r"cuckoo\.db, conf, .* already; --force"):
        restore(target, cwd)
    with engine_lock(cwd), pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        restore(target, cwd, force=True)
    assert tree(cwd) == before


def test_a_log_of_another_database_is_not_replayed(cwd: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.tar.gz"
    back_up(cwd, target)
    (cwd / "cuckoo.db-wal").write_bytes(b"of the one that is replaced")
    restore(target, cwd, force=True)

    assert not (cwd / "cuckoo.db-wal").exists()


def test_what_changes_while_it_is_read_spoils_nothing(cwd: Path, tmp_path: Path) -> None:
    trace = cwd / "storage" / "analyses" / "1" / "trace"
    trace.write_bytes(b"x" * (3 << 20))
    target, new = tmp_path / "all.tar.gz", tmp_path / "new"

    def cut(_files: int, _size: int) -> None:
        os.truncate(trace, 1)
        (cwd / "storage" / "binaries" / SHA256).unlink(missing_ok=True)

    back_up(cwd, target, progress=cut)
    restore(target, new)
    assert (new / "storage" / "analyses" / "1" / "trace").stat().st_size in (1, 3 << 20)


def test_neither_side_holds_a_large_file_in_memory(cwd: Path, tmp_path: Path) -> None:
    with (cwd / "storage" / "analyses" / "1" / "memory.dmp").open("wb") as file:
        file.truncate(64 << 20)
    target = tmp_path / "all.tar.zst"
    tracemalloc.start()
    try:
        back_up(cwd, target)
        restore(target, tmp_path / "new")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


# -- what is not taken ----------------------------------------------------------------------------

Change = Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]


def rewritten(source: Path, target: Path, change: Change, extra: list[tarfile.TarInfo]) -> Path:
    """The archive with some of its members changed, and some more before the manifest."""
    with (
        source.open("rb") as raw,
        form.reading(raw) as old,
        gzip.open(target, "wb") as packed,
        tarfile.open(fileobj=packed, mode="w|") as new,
    ):
        for member in form.members(old):
            file = old.extractfile(member) if member.isreg() else None
            data = file.read() if file is not None else b""
            if member.name == form.MANIFEST:
                for each in extra:
                    new.addfile(each, io.BytesIO(b"x" * each.size))
            kept = change(member, data)
            if kept is not None:
                kept[0].size = len(kept[1])
                new.addfile(kept[0], io.BytesIO(kept[1]))
    return target


def same(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes] | None:
    return member, data


def stranger(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (stranger("../outside"), "which no backup has"),
        (stranger("/etc/passwd"), "which no backup has"),
        (stranger("conf/../../outside"), "which no backup has"),
        (stranger("conf/./x"), "which no backup has"),
        (stranger(".ssh/authorized_keys"), "which no backup has"),
        (stranger("conf/x", tarfile.SYMTYPE, "/etc"), "a link to '/etc'"),
        (stranger("storage/analyses/1/x", tarfile.SYMTYPE, "../../../.."), "a link to"),
        (stranger("storage/analyses/2/binary", tarfile.SYMTYPE, "/etc/shadow"), "a link to"),
        (stranger("conf/x", tarfile.LNKTYPE, "/etc/passwd"), "no file and no folder"),
        (stranger("conf/x", tarfile.CHRTYPE), "no file and no folder"),
        (stranger("conf/x", tarfile.FIFOTYPE), "no file and no folder"),
        (stranger("conf/cuckoo.conf"), "twice"),
        (stranger("conf/more.conf"), "it was damaged"),
    ],
)  # fmt: skip
def test_a_member_that_leads_elsewhere_is_refused(
    cwd: Path, tmp_path: Path, member: tarfile.TarInfo, complaint: str
) -> None:
    back_up(cwd, tmp_path / "all.tar.gz")
    bad = rewritten(tmp_path / "all.tar.gz", tmp_path / "bad.tar.gz", same, [member])
    new = tmp_path / "new"
    with pytest.raises(BadInput, match=complaint):
        restore(bad, new)

    assert [path.name for path in new.iterdir()] == [".engine.lock"]
    assert not (tmp_path / "outside").exists()


def damaged(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes] | None:
    return member, data.replace(b"s3cret", b"others")


def without_the_sample(
    member: tarfile.TarInfo, data: bytes
) -> tuple[tarfile.TarInfo, bytes] | None:
    return None if member.name.endswith(SHA256) else (member, data)


def without_its_end(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes] | None:
    return None if member.name == form.MANIFEST else (member, data)


def of_the_future(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes] | None:
    if member.name == form.HEAD:
        data = msgspec.json.encode(msgspec.json.decode(data) | {"format": form.FORMAT + 1})
    return member, data


def with_another_database(
    member: tarfile.TarInfo, data: bytes
) -> tuple[tarfile.TarInfo, bytes] | None:
    return member, data[:100] + bytes(len(data) - 100) if member.name == "cuckoo.db" else data


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (damaged, r"conf/cuckoo\.conf.* is not what the backup's manifest says"),
        (without_the_sample, "is not what the backup's manifest says|missing"),
        (without_its_end, "only a part of a backup"),
        (of_the_future, "made by a newer server"),
        (with_another_database, "manifest|database"),
    ],
)
def test_a_backup_that_is_not_whole_changes_nothing(
    cwd: Path, tmp_path: Path, change: Change, complaint: str
) -> None:
    back_up(cwd, tmp_path / "all.tar.gz")
    bad = rewritten(tmp_path / "all.tar.gz", tmp_path / "bad.tar.gz", change, [])
    before = tree(cwd)
    with pytest.raises(BadInput, match=complaint):
        restore(bad, cwd, force=True)

    assert tree(cwd) == before


@pytest.mark.parametrize("name", ["all.tar.zst", "all.tar.gz"])
def test_a_file_that_was_cut_off_is_refused(cwd: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    back_up(cwd, target)
    os.truncate(target, target.stat().st_size * 2 // 3)
    with pytest.raises(BadInput, match="only a part of"):
        restore(target, tmp_path / "new")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.tar.zst"
    other.write_bytes(b"not an archive at all")
    with pytest.raises(BadInput, match="it is no backup"):
        restore(other, tmp_path / "new")


def test_a_damaged_database_is_not_put_in_place(cwd: Path, tmp_path: Path) -> None:
    with (cwd / "cuckoo.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    target = tmp_path / "all.tar.gz"
    back_up(cwd, target)
    with pytest.raises(BadInput, match="the backup's database"):
        restore(target, tmp_path / "new")


# -- the commands ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_logging_is_put_back")
def test_the_commands(cwd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, new = str(tmp_path / "all.tar.zst"), str(tmp_path / "new")
    assert main(["--cwd", str(cwd), "backup", target]) == 0
    assert "It holds tokens: keep it private." in capsys.readouterr().out
    assert main(["--cwd", str(cwd), "backup", target]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["--cwd", str(cwd), "backup", str(tmp_path / "all.zip")]) == 1
    assert "the name must end in" in capsys.readouterr().err
    assert main(["--cwd", new, "restore", target]) == 0
    assert f"{new} is as it was on " in capsys.readouterr().out
    assert main(["--cwd", new, "restore", target]) == 1
    assert "--force replaces them" in capsys.readouterr().err
    assert main(["--cwd", new, "restore", "--force", target]) == 0
    assert main(["--cwd", new, "restore", "--force", str(tmp_path / "none.tar.gz")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert tree(Path(new)) == tree(cwd)
