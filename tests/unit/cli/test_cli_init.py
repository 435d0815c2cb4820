"""``cuckoo init`` makes what is missing, keeps what is there, and gives nothing away."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.cli.common import settings_of
from cuckoo_api.cli.main import main

FILES = {"cuckoo.conf", "routing.conf", "qemu.conf"}


def contents(cwd: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cwd)): p.read_bytes() for p in cwd.rglob("*") if p.is_file()}


def test_it_makes_a_directory_that_a_server_can_start_on(cwd: Path) -> None:
    assert {path.name for path in (cwd / "conf").iterdir()} >= FILES
    settings = settings_of(cwd)
    assert settings.cuckoo.machinery == ("qemu",)
    assert settings.warnings == ()
    assert len(settings.cuckoo.api_token) >= 32
    assert (cwd / "storage" / "analyses").is_dir()


def test_every_directory_has_a_token_of_its_own(cwd: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    main(["--cwd", str(other), "init"])

    assert settings_of(cwd).cuckoo.api_token != settings_of(other).cuckoo.api_token


def test_nobody_else_can_read_what_is_in_it(cwd: Path) -> None:
    # but pass through it: a hypervisor of another user has its machines' disks in there
    private = [*cwd.iterdir(), *(cwd / "conf").iterdir()]
    assert [path for path in private if path.stat().st_mode & 0o077] == []


def test_a_second_time_changes_nothing_and_says_so(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(cwd)
    assert main(["--cwd", str(cwd), "init"]) == 0

    assert contents(cwd) == before
    assert capsys.readouterr().out == f"{cwd} was ready; nothing was changed.\n"


def test_an_edited_file_stays_and_a_missing_one_comes_back(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = cwd / "conf" / "cuckoo.conf"
    edited.write_text("# mine\n")
    (cwd / "conf" / "routing.conf").unlink()
    assert main(["--cwd", str(cwd), "init"]) == 0

    assert edited.read_text() == "# mine\n"
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {cwd / 'conf' / 'routing.conf'}",
        f"{cwd} is ready.",
    ]


def test_a_link_in_the_place_of_a_file_is_not_written_through(cwd: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (cwd / "conf" / "routing.conf").unlink()
    (cwd / "conf" / "routing.conf").symlink_to(target)
    assert main(["--cwd", str(cwd), "init"]) == 0

    assert not target.exists()
