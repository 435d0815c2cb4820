from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cuckoo_api.settings import CuckooSection, Settings


@pytest.fixture
def cwd(tmp_path: Path, empty_database: Path) -> Path:
    """A working directory with an empty database."""
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    return tmp_path


@pytest.fixture
def settings(cwd: Path) -> Settings:
    """A server without machines that asks for a token."""
    return Settings(cwd=cwd, cuckoo=CuckooSection(machinery=(), api_token="secret", freespace=0))
