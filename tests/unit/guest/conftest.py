"""The agent, a result server and a task, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from guestkit import ResultListener, listening, running_agent

from cuckoo_api.model.task import Task


@pytest.fixture
async def results() -> AsyncIterator[ResultListener]:
    async with listening() as listener:
        yield listener


@pytest.fixture
def guest_tmp(tmp_path: Path) -> Path:
    """What the agent takes for the guest's /tmp."""
    folder = tmp_path / "guest"
    folder.mkdir()
    return folder


@pytest.fixture
def agent(guest_tmp: Path) -> Iterator[str]:
    """The address of an agent of the test's own."""
    with running_agent(guest_tmp) as address:
        yield address


@pytest.fixture(scope="session")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an agent for tests that leave its state alone."""
    with running_agent(tmp_path_factory.mktemp("shared")) as address:
        yield address


@pytest.fixture
def task() -> Task:
    return Task(id=7, category="file", target="/samples/sample.sh", added_on="2024-01-02 03:04:05")
