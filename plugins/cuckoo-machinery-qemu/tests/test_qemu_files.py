"""Snapshots, run folders, and what QEMU left for us to take: QEMU may be in a guest's hands."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuckoo_api.machinery import BackendUnavailable, BadConfig, SnapshotNotFound
from cuckoo_machinery_qemu.files import MachineFiles, copy, place, take_over

FITS = {"qemu": "7.2", "accelerator": "tcg"}


@pytest.fixture
def files(tmp_path: Path) -> MachineFiles:
    return MachineFiles(tmp_path, "one")


def keep(files: MachineFiles, name: str, disk: bytes = b"disk") -> None:
    """A run whose files become a snapshot."""
    run = files.fresh_run()
    (run / "overlay.qcow2").write_bytes(disk)
    (run / "state.qcow2").write_bytes(b"state")
    (run / "overlay.qcow2").chmod(0o666)
    files.keep(name, FITS)


# -- snapshots ------------------------------------------------------------------------------------


def test_a_run_becomes_a_private_snapshot(files: MachineFiles) -> None:
    keep(files, "clean")
    folder = files.check("clean", FITS)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name, content in (("disk.qcow2", b"disk"), ("state.qcow2", b"state")):
        assert (folder / name).read_bytes() == content
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert list(files.run.iterdir()) == []


def test_a_snapshot_replaces_an_older_one_of_its_name(files: MachineFiles) -> None:
    keep(files, "clean", b"old")
    keep(files, "other", b"other")
    keep(files, "clean", b"new")
    assert files.names() == ["clean", "other"]
    assert (files.check("clean", FITS) / "disk.qcow2").read_bytes() == b"new"
    assert sorted(p.name for p in (files.root / "snapshots").iterdir()) == ["clean", "other"]


def test_a_snapshot_that_was_half_made_is_none(files: MachineFiles) -> None:
    half = files.root / "snapshots" / ".clean.new"
    half.mkdir(parents=True)
    (half / "disk.qcow2").touch()
    assert files.names() == []
    keep(files, "clean")
    assert files.names() == ["clean"]
    assert not half.exists()


def test_a_missing_snapshot_is_answered_with_those_that_there_are(files: MachineFiles) -> None:
    with pytest.raises(SnapshotNotFound, match=r"one: no snapshot 'clean' \(there is: none\)"):
        files.check("clean", FITS)
    keep(files, "a")
    keep(files, "b")
    with pytest.raises(SnapshotNotFound, match=r"\(there is: a, b\); 'cuckoo guest build'"):
        files.check("clean", FITS)


def test_a_snapshot_that_does_not_fit_says_what_changed(files: MachineFiles) -> None:
    keep(files, "clean")
    with pytest.raises(
        SnapshotNotFound,
        match=r"'clean' was taken with another qemu \(7.2, now 8.0\); 'cuckoo guest build' takes",
    ):
        files.check("clean", FITS | {"qemu": "8.0"})


@pytest.mark.parametrize("name", ["", ".", "..", "../two", "a/b", ".clean.new", "a" * 65, "a\n"])
def test_names_cannot_lead_elsewhere(tmp_path: Path, files: MachineFiles, name: str) -> None:
    with pytest.raises(SnapshotNotFound):
        files.check(name, {})
    with pytest.raises(SnapshotNotFound):
        files.snapshot(name)
    with pytest.raises(BadConfig, match="allowed: up to 64 letters"):
        MachineFiles(tmp_path, name)


# -- the run folder -------------------------------------------------------------------------------


def test_a_run_folder_is_private_and_fresh_each_time(files: MachineFiles) -> None:
    run = files.fresh_run()
    (run / "overlay.qcow2").touch()
    (run / "folder").mkdir()
    assert list(files.fresh_run().iterdir()) == []
    assert files.run.stat().st_mode & 0o777 == 0o700
    files.remove_run()
    files.remove_run()
    assert not files.run.exists()


def test_removing_a_run_follows_no_link_out_of_it(files: MachineFiles, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    (files.fresh_run() / "link").symlink_to(tmp_path / "mine")
    files.remove_run()
    assert (tmp_path / "mine/file").exists()


@pytest.fixture
def program(files: MachineFiles) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start a program in the run folder, with a word on its command line and its id noted."""
    started = []

    def start(word: str) -> subprocess.Popen[bytes]:
        run = files.fresh_run()
        command = [sys.executable, "-c", "print(flush=True); input()", word]
        process = subprocess.Popen(command, cwd=run, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        files.pidfile.write_text(str(process.pid))
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


Program = Callable[[str], subprocess.Popen[bytes]]


def test_a_qemu_that_an_earlier_server_left_is_ended(files: MachineFiles, program: Program) -> None:
    left = program("cuckoo-one")
    files.end_leftover()
    assert left.wait(10) == -9
    assert not files.run.exists()
    assert not files.pidfile.exists()


def test_a_stranger_who_got_the_process_id_is_left_alone(
    files: MachineFiles, program: Program
) -> None:
    stranger = program("cuckoo-two")
    files.end_leftover()
    assert stranger.poll() is None
    assert not files.run.exists()
    files.root.mkdir(exist_ok=True)
    files.pidfile.write_text("nonsense")
    files.end_leftover()
    assert not files.pidfile.exists()


# -- copies ---------------------------------------------------------------------------------------


def test_a_copy_is_the_same_and_keeps_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(64 << 20)
        file.write(b"tail")
        file.truncate(128 << 20)
    copy(source, target)
    assert target.stat().st_size == source.stat().st_size
    assert target.stat().st_blocks <= source.stat().st_blocks + 16
    with target.open("rb") as file:
        assert file.read(4) == b"head"
        file.seek(64 << 20)
        assert file.read(4) == b"tail"


def test_a_file_for_everybody_is_linked_and_a_private_one_copied(tmp_path: Path) -> None:
    for mode, same in ((0o644, True), (0o600, False)):
        source, target = tmp_path / f"source{mode}", tmp_path / f"target{mode}"
        source.write_bytes(b"kernel")
        source.chmod(mode)
        place(source, target)
        assert target.read_bytes() == b"kernel"
        assert target.samefile(source) is same


# -- what QEMU wrote ------------------------------------------------------------------------------


def test_what_qemu_wrote_is_taken_over(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"picture" * 1000)
    take_over(source, target, limit=7000)
    assert target.read_bytes() == b"picture" * 1000
    assert not source.exists()


def link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def hard_link(path: Path, secret: Path) -> None:
    path.hardlink_to(secret)


def fifo(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def folder(path: Path, secret: Path) -> None:
    path.mkdir()


def device(path: Path, secret: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero


def too_large(path: Path, secret: Path) -> None:
    path.write_bytes(bytes(101))


def nothing(path: Path, secret: Path) -> None:
    pass


@pytest.mark.parametrize(
    "trick", [link, hard_link, fifo, unix_socket, folder, device, too_large, nothing]
)
def test_what_is_not_a_plain_file_of_its_own_is_refused(
    tmp_path: Path, trick: Callable[[Path, Path], None]
) -> None:
    secret, source, target = (tmp_path / name for name in ("secret", "source", "target"))
    secret.write_bytes(b"secret")
    trick(source, secret)
    with pytest.raises(BackendUnavailable, match="source: "):
        take_over(source, target, limit=100)
    assert not target.exists()
    assert secret.read_bytes() == b"secret"
