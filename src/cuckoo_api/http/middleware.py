"""Between the socket and the handlers: who may ask, and errors -> JSON. One middleware, cheap."""

from __future__ import annotations

import base64
import binascii
import functools
import hmac
import ipaddress
import re
from urllib.parse import urlsplit

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from cuckoo_api.http.keys import REQUEST_ID, SWITCH
from cuckoo_api.http.replies import FIXED_HEADERS, failure, http_failure, new_request_id
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.settings import Settings

log = structlog.get_logger()

HOW_TO_AUTHENTICATE = (
    "Authentication in the form of an 'Authorization: Bearer <TOKEN>' header is required; "
    "the token is api_token under [cuckoo] in conf/cuckoo.conf of the server's working directory"
)
FOREIGN = (
    "This server has no api_token and therefore answers only requests that are addressed to "
    "localhost and made by no other web site; set [cuckoo] api_token in conf/cuckoo.conf to "
    "open it"
)
OPEN = frozenset(
    f"{prefix}{path}{slash}"
    for prefix in ("", "/v1")
    for path in ("/healthz", "/readyz")
    for slash in ("", "/")
)
"""Paths that a monitor may ask without the token."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Unauthorized(CuckooError):
    """The token is missing or wrong."""

    code = "unauthorized"
    status = 401


class Forbidden(CuckooError):
    """The request is understood, and refused whoever sends it."""

    code = "forbidden"
    status = 403


def make_guard(settings: Settings) -> Middleware:
    """The middleware of an application with these settings."""
    token = settings.cuckoo.api_token.encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = _request_id(request)
        request[REQUEST_ID] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            if request.path not in OPEN:
                if token:
                    check_token(request.headers.get(hdrs.AUTHORIZATION, ""), token)
                else:
                    check_is_local(request)
            response = await handler(request)
        except CuckooError as exc:
            response = _refusal(exc)
        except web.HTTPException as exc:
            response = http_failure(exc)
        except ConnectionError:  # the client hung up
            raise
        except Exception as exc:
            log.exception("request.failed", method=request.method, path=request.rel_url.raw_path)
            if request.writer.output_size > 0:
                # half an answer is out: only a broken connection can say that it is no whole one
                raise ConnectionAbortedError from exc
            response = failure(500, f"Internal error; the server's log has it as {request_id}")
        if request.app[SWITCH].draining and not response.prepared:
            response.force_close()
        return response

    return guard


async def complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What every response carries; runs just before the headers are sent."""
    headers = response.headers
    headers.update(FIXED_HEADERS)
    headers["X-Request-Id"] = request.get(REQUEST_ID) or new_request_id()


def check_token(header: str, token: bytes) -> None:
    """Raise Unauthorized unless the Authorization header shows the token."""
    scheme, _, value = header.partition(" ")
    given = value.strip().encode("utf-8", "surrogateescape")
    match scheme.lower():
        case "bearer":
            pass
        case "basic":
            try:
                _, _, given = base64.b64decode(given, validate=True).partition(b":")
            except binascii.Error:
                given = b""
        case _:
            given = b""
    if not hmac.compare_digest(given, token):
        raise Unauthorized(HOW_TO_AUTHENTICATE)


def check_is_local(request: web.Request) -> None:
    """Refuse what a foreign web page may have made a local browser send."""
    headers = request.headers
    host = headers.get(hdrs.HOST)
    if host is not None and not is_local(f"//{host}"):
        raise Forbidden(FOREIGN)
    origin = headers.get(hdrs.ORIGIN)
    if origin is not None and not is_local(origin):
        raise Forbidden(FOREIGN)
    if headers.get("Sec-Fetch-Site", "") == "cross-site":
        raise Forbidden(FOREIGN)


@functools.lru_cache(maxsize=64)
def is_local(url: str) -> bool:
    """Whether the URL, or ``//host:port``, names this machine by its loopback."""
    try:
        parts = urlsplit(url)
        name = parts.hostname or ""
        if parts.username is not None or parts.path not in ("", "/"):
            return False
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _request_id(request: web.Request) -> str:
    """A proxy's own id where it gave a plain one: two logs can then be read as one."""
    given = request.headers.get("X-Request-Id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def _refusal(exc: CuckooError) -> web.Response:
    if exc.status >= 500:
        log.error("request.error", code=exc.code, reason=exc.log)
    headers = {"WWW-Authenticate": "Bearer"} if exc.status == 401 else None
    return failure(exc.status, str(exc), headers)
