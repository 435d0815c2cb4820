from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from clikit import Terminal

from cuckoo_api.analysis.service import AnalysisService
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.cli.common import console
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.http.protocol import Runner
from cuckoo_api.server.app import http_app
from cuckoo_api.settings import init_cwd, load_settings
from cuckoo_api.settings.init import with_value
from cuckoo_api.store import Store


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands configure the log; a terminal is wide, and nobody's own settings count."""
    monkeypatch.delenv("CUCKOO_TOKEN", raising=False)
    monkeypatch.setattr(console, "width", 200)
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A working directory as ``cuckoo init`` makes it."""
    cwd = tmp_path / "cwd"
    init_cwd(cwd, [])
    conf = cwd / "conf/cuckoo.conf"
    conf.write_text(with_value(conf.read_text(), "cuckoo", "machinery", ""))
    return cwd


@pytest.fixture
async def terminal(
    cwd: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Terminal]:
    """A terminal, and a server that runs on the working directory."""
    shutil.copy(empty_database, cwd / "cuckoo.db")
    settings = load_settings(cwd, [])
    store = await Store.open(f"sqlite:///{cwd / 'cuckoo.db'}")
    artefacts = Artefacts(settings.storage)
    await artefacts.open()
    app = http_app(settings)
    app[SERVICE] = AnalysisService(settings, store, artefacts, on_submitted=lambda: None)
    runner = Runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    conf = cwd / "conf/cuckoo.conf"
    conf.write_text(with_value(conf.read_text(), "api", "port", str(runner.addresses[0][1])))
    yield Terminal(cwd, store, capsys)
    await runner.cleanup()
    await artefacts.close()
    await store.close()
