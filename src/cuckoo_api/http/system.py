"""The server itself: its figures, its health, its end."""

from __future__ import annotations

from aiohttp import web

from cuckoo_api.http.access import Forbidden
from cuckoo_api.http.keys import DOCUMENT, SERVICE, SWITCH
from cuckoo_api.http.replies import JSON, Message, reply
from cuckoo_api.http.schemas import Health, Readiness
from cuckoo_api.model.errors import CuckooError


async def status(request: web.Request) -> web.StreamResponse:
    """Version, tasks, machines, disk and load."""
    return reply(await request.app[SERVICE].status())


async def vpn_status(request: web.Request) -> web.StreamResponse:
    """The state of the VPN tunnels."""
    return reply(await request.app[SERVICE].vpns())


async def stop(request: web.Request) -> web.StreamResponse:
    """Stop the server; only where it was started with ``--debug``."""
    switch = request.app[SWITCH]
    if not switch.debug:
        raise Forbidden("This call can only be used in debug mode")
    if switch.stop is None:
        raise CuckooError(
            "Another program (gunicorn, uWSGI) owns this process: stop the server there"
        )
    switch.stop()
    return reply(Message("Server stopped"))


async def alive(request: web.Request) -> web.StreamResponse:
    """Whether the server answers at all; needs no authentication."""
    return reply(Health())


async def ready(request: web.Request) -> web.StreamResponse:
    """Whether the server may take work, else what is wrong; needs no authentication."""
    problems = await request.app[SERVICE].problems()
    if problems:
        return reply(Readiness("; ".join(problems), problems), status=503)
    return reply(Readiness("ready", []))


async def openapi(request: web.Request) -> web.StreamResponse:
    """This interface as an OpenAPI 3.1 document."""
    return web.Response(body=request.app[DOCUMENT], content_type=JSON)
