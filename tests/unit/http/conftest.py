from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from httpkit import Client, NewSite, Site

from cuckoo_api.analysis.service import AnalysisService
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.http.protocol import Runner
from cuckoo_api.server.app import http_app
from cuckoo_api.settings import (
    ApiSection,
    ArchivesSection,
    CuckooSection,
    Settings,
    VirusTotalSection,
)
from cuckoo_api.store import Store


@pytest.fixture(autouse=True)
def _only_errors_are_logged() -> Iterator[None]:
    """A line for each request takes longer than the request."""
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    yield
    structlog.configure(**before)


@asynccontextmanager
async def _site(settings: Settings, *, debug: bool) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        store = await Store.open(f"sqlite:///{settings.cwd / 'cuckoo.db'}")
        stack.push_async_callback(store.close)
        artefacts = Artefacts(settings.storage)
        await artefacts.open()
        stack.push_async_callback(artefacts.close)
        wakes: list[None] = []
        app = http_app(settings, debug=debug)
        app[SERVICE] = AnalysisService(
            settings, store, artefacts, on_submitted=lambda: wakes.append(None)
        )
        runner = Runner(app, shutdown_timeout=1)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = await stack.enter_async_context(Client(runner.addresses[0][1]))
        yield Site(settings, store, artefacts, app, client, wakes)


@pytest.fixture
async def new_site(tmp_path: Path, empty_database: Path) -> AsyncIterator[NewSite]:
    """Make a server on a working directory of its own; settings by keyword."""
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    async with AsyncExitStack() as stack:

        async def make(
            *,
            token: str = "",
            debug: bool = False,
            archives: ArchivesSection | None = None,
            virustotal: VirusTotalSection | None = None,
            **api: object,
        ) -> Site:
            settings = Settings(
                cwd=tmp_path,
                archives=archives or ArchivesSection(),
                virustotal=virustotal or VirusTotalSection(),
                cuckoo=CuckooSection(machinery=(), api_token=token),
                api=ApiSection(**api),  # type: ignore[arg-type]  # the section checks nothing itself
            )
            return await stack.enter_async_context(_site(settings, debug=debug))

        yield make


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    """A server without a token."""
    return await new_site()
