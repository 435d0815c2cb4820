"""A server without an engine in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from cuckoo_api.http.keys import SWITCH
from cuckoo_api.server.app import create_app
from cuckoo_api.server.run import serve
from cuckoo_api.settings import Settings

PATIENCE = 10.0
"""Seconds after which a test gives up."""


class Server:
    """It serves once :meth:`start` returns; raises what the start raises."""

    def __init__(self, app: web.Application) -> None:
        self.app = app
        self.url = ""
        self.task: asyncio.Task[None] | None = None

    async def start(self, **where: Any) -> str:
        """Serve on a free port, or where it is told to; the URL."""
        ready = asyncio.get_running_loop().create_future()
        where = {"port": 0} | where
        self.task = asyncio.create_task(serve(self.app, on_ready=ready.set_result, **where))
        await asyncio.wait({self.task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self.task.result()
        self.url = ready.result()
        return self.url

    async def stop(self) -> None:
        """End it as ``/exit`` does."""
        stop = self.app[SWITCH].stop
        assert stop is not None
        stop()
        await self.ended()

    async def ended(self) -> None:
        """Until it has stopped."""
        assert self.task is not None
        async with asyncio.timeout(PATIENCE):
            await self.task

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])


@asynccontextmanager
async def serving(settings: Settings, **where: Any) -> AsyncIterator[str]:
    """A server while entered; its URL."""
    server = Server(create_app(settings, engine=False))
    yield await server.start(**where)
    await server.stop()
