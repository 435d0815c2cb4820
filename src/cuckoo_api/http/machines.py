"""The configured machines and their states now."""

from __future__ import annotations

from aiohttp import web

from cuckoo_api.http.keys import SERVICE
from cuckoo_api.http.replies import reply


async def list_machines(request: web.Request) -> web.StreamResponse:
    """Every machine."""
    return reply({"machines": await request.app[SERVICE].machines()})


async def view(request: web.Request) -> web.StreamResponse:
    """One machine by name."""
    return reply({"machine": await request.app[SERVICE].machine(request.match_info["name"])})
