from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

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
