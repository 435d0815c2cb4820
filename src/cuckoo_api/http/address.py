"""Where a client is, also behind a proxy."""

from __future__ import annotations

import ipaddress

from aiohttp import web

FORWARDED = "X-Forwarded-For"
UNIX = "unix"
"""Whoever asks over a unix socket and names no other."""


def client_address(request: web.BaseRequest) -> str:
    """The client's address.

    Over a unix socket it is what the proxy there says: the socket's permissions say who may be
    one. Over TCP nobody is believed.
    """
    return request.remote or forwarded_for(request) or UNIX


def forwarded_for(request: web.BaseRequest) -> str:
    """For whom a proxy on a unix socket asks; empty where there is none, or it names no address.

    The last of several: a proxy adds the one that it sees itself, behind what it was told.
    """
    if request.remote:
        return ""
    last = request.headers.get(FORWARDED, "").rpartition(",")[2].strip()
    try:
        return str(ipaddress.ip_address(last))
    except ValueError:
        return ""
