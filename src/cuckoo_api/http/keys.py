"""What the handlers find in the application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from aiohttp import web

from cuckoo_api.analysis.service import AnalysisService
from cuckoo_api.settings import Settings


@dataclass(slots=True)
class Switch:
    """How the application can be stopped from inside."""

    debug: bool = False
    """Whether ``/exit`` may be used."""
    stop: Callable[[], None] | None = None
    """Begins a graceful stop; None where another program owns the process."""
    reload: Callable[[], None] | None = None
    """Has the configuration read anew; None before the application has started."""
    reloading: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered for each reload."""
    drain: Callable[[], Awaitable[None]] | None = None
    """Begins no analysis any more and returns once none runs; None where there is no engine."""
    draining: bool = False
    """The server stops: every answer closes its connection."""


SERVICE = web.AppKey("service", AnalysisService)
SETTINGS = web.AppKey("settings", Settings)
"""Those of the start; the ones in force are the service's."""
SWITCH = web.AppKey("switch", Switch)
ARCHIVES = web.AppKey("archives", asyncio.Semaphore)
"""A turn for each archive that is written at the same time: it keeps a processor busy."""
STREAMS = web.AppKey("streams", asyncio.Semaphore)
"""A place for each client that follows the events."""
DOCUMENT = web.AppKey("openapi", bytes)

REQUEST_ID = web.RequestKey("request_id", str)
CLIENT = web.RequestKey("client", str)
"""The name of the token that was shown."""
