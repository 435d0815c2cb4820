"""A running result server for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from resultskit import Rig, make_folder, running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An analysis folder as the server makes it."""
    return make_folder(tmp_path / "1")


@pytest.fixture
async def rig(folder: Path) -> AsyncIterator[Rig]:
    async with running(folder) as rig:
        yield rig
