from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.cli.main import main


@pytest.fixture(autouse=True)
def _a_process_of_its_own(
    _logging_is_put_back: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Commands set up the log; and nobody's own working directory is touched."""
    monkeypatch.delenv("CUCKOO_CWD", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def cwd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working directory, fresh from ``cuckoo init``; what that printed is read already."""
    path = tmp_path / "cwd"
    assert main(["--cwd", str(path), "init"]) == 0
    capsys.readouterr()
    return path
