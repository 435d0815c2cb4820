from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cuckoo_api.store import Store

# here, before any test module of another folder imports them
pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without rows: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("store") / "cuckoo.db"

    async def make() -> None:
        await (await Store.open(f"sqlite:///{path}")).close()

    asyncio.run(make())
    return path
