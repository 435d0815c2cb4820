from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.store import Store


@pytest.fixture
async def store(tmp_path: Path, empty_database: Path) -> AsyncIterator[Store]:
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    store = await Store.open(f"sqlite:///{tmp_path}/cuckoo.db", timeout=5)
    yield store
    await store.close()
