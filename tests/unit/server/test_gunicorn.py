"""What gunicorn's worker runs, as aiohttp's worker runs it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from cuckoo_api.http.keys import SETTINGS, SWITCH
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server import gunicorn
from cuckoo_api.server.gunicorn import WorkersRunner
from cuckoo_api.settings.init import init_cwd

pytestmark = pytest.mark.slow


@pytest.fixture
def cwd(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment says that the working directory is."""
    init_cwd(cwd, [])
    conf = cwd / "conf" / "cuckoo.conf"
    conf.write_text(conf.read_text().replace("machinery = qemu", "machinery ="))
    monkeypatch.setenv("CUCKOO_CWD", str(cwd))
    monkeypatch.setattr(gunicorn, "configure_logs", lambda: None)
    return cwd


@pytest.fixture
async def runner(cwd: Path) -> AsyncIterator[WorkersRunner]:
    made = await gunicorn.create_runner()
    assert isinstance(made, WorkersRunner)
    await made.setup()
    yield made
    await made.cleanup()


async def test_it_serves_the_working_directory_of_the_environment(
    cwd: Path, runner: WorkersRunner
) -> None:
    assert runner.app[SETTINGS].cwd == cwd
    url = await serve(runner)
    async with aiohttp.ClientSession(url) as session, session.get("/healthz") as response:
        assert response.status == 200


async def test_who_is_connected_when_it_ends_may_ask_once_more(runner: WorkersRunner) -> None:
    url = await serve(runner)
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/healthz") as response:
            await response.read()
        ending = asyncio.create_task(runner.cleanup())
        while not runner.app[SWITCH].draining:
            await asyncio.sleep(0)
        async with session.get("/healthz") as response:
            assert response.status == 200
            assert response.headers["Connection"] == "close"
        await ending
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("/healthz")


async def test_faulty_settings_end_the_worker(cwd: Path) -> None:
    (cwd / "conf" / "cuckoo.conf").write_text("[api]\nport = many\n")
    with pytest.raises(ConfigError, match="port"):
        await gunicorn.create_runner()


async def serve(runner: WorkersRunner) -> str:
    """Let it listen, as the worker does; the URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"
