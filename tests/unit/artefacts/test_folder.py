"""What a guest may have planted in an analysis folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuckoo_api.artefacts import AnalysisFolder, Artefacts
from cuckoo_api.model.errors import NotFound


@pytest.fixture
async def folder(tmp_path: Path) -> AnalysisFolder:
    artefacts = Artefacts(tmp_path / "storage")
    await artefacts.open()
    await artefacts.close()
    folder = artefacts.analysis(1)
    await folder.create(b"{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "0001.jpg").write_bytes(b"secret")
    return folder


def test_a_linked_folder_of_screenshots_has_none(folder: AnalysisFolder, tmp_path: Path) -> None:
    (folder.path / "shots").rmdir()
    (folder.path / "shots").symlink_to(tmp_path / "outside")
    assert folder.screenshots() == []
    with pytest.raises(NotFound, match="Screenshot not found!"):
        folder.screenshot("1")


def test_screenshots_come_in_the_order_of_their_numbers(folder: AnalysisFolder) -> None:
    for name in ("10000.jpg", "0002.jpg", "9999.jpg", "x.jpg", "0003.jpg.exe", "0004.png"):
        (folder.path / "shots" / name).write_bytes(b"")
    names = [path.name for path in folder.screenshots()]
    assert names == ["0002.jpg", "9999.jpg", "10000.jpg"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "//etc/passwd", "/etc/passwd", "files/", "./task.json", "files/../task.json",
     "../1/task.json", "a\0b", "x" * 5000, "a/" * 3000, "\udc80", "task.json/x"],
)  # fmt: skip
def test_a_name_that_is_none(folder: AnalysisFolder, name: str) -> None:
    with pytest.raises(NotFound, match="File not found"):
        folder.file(name)


def test_a_link_a_fifo_and_a_folder_are_not_opened(folder: AnalysisFolder, tmp_path: Path) -> None:
    (folder.path / "files" / "link").symlink_to(tmp_path / "outside" / "0001.jpg")
    (folder.path / "files" / "inside").symlink_to(folder.path / "task.json")
    os.mkfifo(folder.path / "files" / "fifo")
    for name in ("files/link", "files/inside", "files/fifo", "files"):
        with pytest.raises(NotFound):
            folder.open(name)
    with folder.open("task.json") as file:
        assert file.read() == b"{}"


def test_what_was_opened_is_what_was_checked(folder: AnalysisFolder, tmp_path: Path) -> None:
    with folder.open("task.json") as file:
        (folder.path / "task.json").unlink()
        (folder.path / "task.json").symlink_to(tmp_path / "outside" / "0001.jpg")
        assert file.read() == b"{}"


def test_a_folder_put_there_by_hand_is_served(tmp_path: Path) -> None:
    reports = tmp_path / "analyses" / "77" / "reports"
    reports.mkdir(parents=True)
    (reports / "report.json").write_bytes(b'{"info": {}}')
    folder = Artefacts(tmp_path).analysis(77)
    assert folder.report("json").read_bytes() == b'{"info": {}}'
    with pytest.raises(NotFound, match="Report not found"):
        folder.report("../report")


@pytest.mark.parametrize("task_id", [-1, 0, 1 << 63, 10**300])
def test_an_id_that_no_task_has(tmp_path: Path, task_id: int) -> None:
    folder = Artefacts(tmp_path).analysis(task_id)
    assert folder.screenshots() == []
    with pytest.raises(NotFound, match="Report not found"):
        folder.report("json")


async def test_a_link_in_the_place_of_the_folder_is_removed_not_followed(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path / "storage")
    await artefacts.open()
    await artefacts.close()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keep").write_bytes(b"mine")
    folder = artefacts.analysis(5)
    folder.path.symlink_to(tmp_path / "outside")
    await folder.create(b"{}")
    assert not folder.path.is_symlink()
    assert (tmp_path / "outside" / "keep").read_bytes() == b"mine"
