from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from fakekit import AudibleScheduler, Site, new_cwd, report_here

from cuckoo_api.analysis import run
from cuckoo_api.fleet import Deadlines
from cuckoo_api.guest import client
from cuckoo_api.reporting import service as reporting
from cuckoo_api.server import lifespan
from cuckoo_api.testing.fake import FakeHypervisor
from waiting import News


@pytest.fixture(autouse=True)
def _only_errors_are_logged() -> Iterator[None]:
    """A line for each step takes longer than the step."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.fixture
async def site(
    tmp_path: Path, empty_database: Path, writes: News, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """A place for a server; at the end nothing may be left of it."""
    monkeypatch.setattr(
        Deadlines, "of", lambda timeouts: Deadlines(start=timeouts.vm_state, first_reopen=0.02)
    )
    monkeypatch.setattr(lifespan, "Scheduler", AudibleScheduler)
    monkeypatch.setattr(run, "EVENT_LAG", 0.1)
    monkeypatch.setattr(client, "STATUS_INTERVAL", 0.1)
    monkeypatch.setattr(client, "STATUS_TIMEOUT", 0.1)
    monkeypatch.setattr(client, "LOST_AFTER", 0.1)
    monkeypatch.setattr(reporting, "_run", report_here)
    async with FakeHypervisor() as world:
        site = Site(new_cwd(tmp_path, empty_database), world, writes)
        yield site
        await site.stop()
        await site.assert_nothing_left()
