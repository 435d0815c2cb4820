"""Answers: JSON, and errors that are JSON too."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from aiohttp import web

FIXED_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Server": "cuckoo-api",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-cache",
        "Pragma": "no-cache",
        "Expires": "0",
    }
)
"""On every response, whoever made it."""

JSON = "application/json"

encode = msgspec.json.Encoder().encode


class Message(msgspec.Struct, frozen=True):
    """What an error, or a plain success, has to say."""

    message: str


def reply(content: Any, *, status: int = 200) -> web.Response:
    """The content as JSON."""
    return web.Response(body=encode(content), status=status, content_type=JSON)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as the contract wants it."""
    response = reply(Message(message), status=status)
    if headers:
        response.headers.update(headers)
    return response


def http_failure(exc: web.HTTPException) -> web.Response:
    """What aiohttp itself refused, in our words where its own are an error page's."""
    match exc:
        case web.HTTPNotFound():
            return failure(404, "There is nothing at this address; /openapi.json lists all")
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted({*exc.allowed_methods, "OPTIONS"}))
            if exc.method == "OPTIONS":
                return web.Response(headers={"Allow": allow})
            return failure(
                405, f"{exc.method} is not allowed here; allowed: {allow}", {"Allow": allow}
            )
        case _:
            return failure(exc.status, exc.text or exc.reason)


def new_request_id() -> str:
    """Short, and hard to meet twice in one log."""
    return secrets.token_hex(8)
