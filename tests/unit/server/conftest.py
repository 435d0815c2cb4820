from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from cuckoo_api.http import protocol
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
def logs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is logged of requests, however other tests have set the log up."""
    capture = LogCapture()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    monkeypatch.setattr(protocol, "log", logger)
    return capture.entries
