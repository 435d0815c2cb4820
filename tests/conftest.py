from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cuckoo_api.artefacts import keepers
from cuckoo_api.fleet import registry
from cuckoo_api.store import Store
from cuckoo_api.store.connection import Database
from keeperkit import start_thread
from waiting import News

# here, before any test module of another folder imports them
pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> None:
    """structlog's own show the locals and take a second each."""
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


@pytest.fixture(scope="session", autouse=True)
def _installed_plugins_are_looked_for_once() -> Iterator[None]:
    """Every installed package is opened for it, which no test is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True)
def _uploads_are_looked_at_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processes are not what is tested."""
    monkeypatch.setattr(keepers, "start_process", start_thread)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without rows: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("store") / "cuckoo.db"

    async def make() -> None:
        await (await Store.open(f"sqlite:///{path}")).close()

    asyncio.run(make())
    return path


@pytest.fixture
def _logging_is_put_back() -> Iterator[None]:
    """A process sets its logging up once; here another test comes after it."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)
    for module in list(sys.modules.values()):
        made = vars(module).get("log")
        if isinstance(made, structlog._config.BoundLoggerLazyProxy):
            vars(made).pop("bind", None)  # what it keeps once it was used


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> News:
    """What the stores of this process write."""
    news, write = News(), Database.write

    async def told(database: Database, operation: Any) -> Any:
        try:
            return await write(database, operation)
        finally:
            news.one_more()

    monkeypatch.setattr(Database, "write", told)
    return news


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave modules that are slow as a whole unread: to import them takes as long as many tests."""
    if config.getoption("markexpr") != "not slow" or collection_path.suffix != ".py":
        return None
    return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text("utf-8") or None
