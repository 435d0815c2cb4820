"""The API for gunicorn with aiohttp's own worker. The working directory is ``$CUCKOO_CWD``."""

from __future__ import annotations

import asyncio

from aiohttp import web

from cuckoo_api.fleet import load_plugins
from cuckoo_api.http.keys import SWITCH
from cuckoo_api.http.protocol import Runner
from cuckoo_api.server.app import create_app
from cuckoo_api.server.logs import configure_logs
from cuckoo_api.server.run import finish_connections
from cuckoo_api.settings import find_cwd, load_settings


async def create_runner() -> Runner:
    """What a worker runs: ``gunicorn cuckoo_api.server.gunicorn:create_runner``.

    The API alone: the engine is a process of its own. Raises ConfigError, and the worker ends.
    """
    configure_logs()
    settings = load_settings(find_cwd(None), list(load_plugins().values()))
    return WorkersRunner(create_app(settings, engine=False))


class WorkersRunner(Runner):
    """Ends as ``cuckoo api`` does: no request is lost when a worker is replaced."""

    async def cleanup(self) -> None:
        """Stop, and let who is connected ask once more."""
        if self.sites:
            self.app[SWITCH].draining = True
            for site in self.sites:
                _accept_no_more(site)
            await asyncio.sleep(
                0
            )  # closed at once, asyncio would drop who was taken in this moment
            await self.shutdown()  # answers without an end come to theirs
            await finish_connections(self)
        await super().cleanup()


def _accept_no_more(site: web.BaseSite) -> None:
    """Leave who knocks from now on to another worker."""
    server = site._server  # noqa: SLF001 - the sites are the worker's, which tells no more of them
    if isinstance(server, asyncio.Server):
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
