"""The application: routes, middleware, and the life that its context gives it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence

from aiohttp import web

from cuckoo_api.http.access import ACCESS, Access
from cuckoo_api.http.events import MAX_STREAMS
from cuckoo_api.http.keys import (
    ARCHIVES,
    DOCUMENT,
    SERVICE,
    SETTINGS,
    STREAMS,
    SWITCH,
    Switch,
)
from cuckoo_api.http.metrics import METRICS, Metrics, make_counter
from cuckoo_api.http.middleware import complete_headers, make_guard
from cuckoo_api.http.openapi import document
from cuckoo_api.http.routes import add_routes
from cuckoo_api.server.lifespan import lifespan
from cuckoo_api.settings import Settings

PARALLEL_ARCHIVES = 2


def create_app(
    settings: Settings,
    *,
    plugins: Sequence[object] | None = None,
    engine: bool = True,
    debug: bool = False,
    reread: Callable[[], Settings] | None = None,
) -> web.Application:
    """Put the server together. Nothing is opened before the application starts.

    ``plugins`` are machinery plugin objects besides the installed ones. Without ``engine`` the
    application serves the API alone, and another process on the same working directory runs the
    analyses. ``debug`` allows ``/exit``. ``reread`` gives the settings of a reload in place of
    those of the working directory.
    """
    app = http_app(settings, debug=debug)
    app.cleanup_ctx.append(
        functools.partial(lifespan, plugins=plugins or (), engine=engine, reread=reread)
    )
    return app


def http_app(settings: Settings, *, debug: bool = False) -> web.Application:
    """The HTTP side alone; whoever runs it must give it a service."""
    metrics = Metrics()
    access = Access(settings)
    app = web.Application(middlewares=[make_counter(metrics), make_guard(access)])
    app[ACCESS] = access
    app[METRICS] = metrics
    app[SETTINGS] = settings
    app[SWITCH] = Switch(debug=debug)
    app[DOCUMENT] = document()
    app[ARCHIVES] = asyncio.Semaphore(PARALLEL_ARCHIVES)
    app[STREAMS] = asyncio.Semaphore(MAX_STREAMS)
    app.on_shutdown.append(_end_streams)
    app.on_response_prepare.append(complete_headers)
    add_routes(app.router)
    return app


async def _end_streams(app: web.Application) -> None:
    """An answer that has no end must not hold up a stop."""
    app[SERVICE].events.close()
