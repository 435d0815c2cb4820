from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.cli.main import main


@pytest.fixture
def cwd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working directory, fresh from ``cuckoo init``; what that printed is read already."""
    path = tmp_path / "cwd"
    assert main(["--cwd", str(path), "init"]) == 0
    capsys.readouterr()
    return path
