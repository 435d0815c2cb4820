"""Between the socket and the handlers: who may ask, and errors -> JSON. One middleware, cheap."""

from __future__ import annotations

import re

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cuckoo_api.http.access import Access, Refused
from cuckoo_api.http.keys import REQUEST_ID, SWITCH
from cuckoo_api.http.replies import FIXED_HEADERS, failure, http_failure, new_request_id
from cuckoo_api.http.routes import ROUTES
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.settings import Rights

log = structlog.get_logger()

_RIGHTS = {route.handler: None if route.is_open else route.rights for route in ROUTES}
"""What each handler's route asks for; None: not even a token."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def make_guard(access: Access) -> Middleware:
    """The middleware of an application to which this is the way in."""
    admit = access.admit

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = _request_id(request)
        request[REQUEST_ID] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            # what has no route, or not with this method, is told to those who may read
            needed = _RIGHTS.get(request.match_info.handler, Rights.READ)
            if needed is not None:
                admit(request, needed)
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


def _request_id(request: web.Request) -> str:
    """A proxy's own id where it gave a plain one: two logs can then be read as one."""
    given = request.headers.get("X-Request-Id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def _refusal(exc: CuckooError) -> web.Response:
    if exc.status >= 500:
        log.error("request.error", code=exc.code, reason=exc.log)
    headers = exc.headers() if isinstance(exc, Refused) else None
    return failure(exc.status, str(exc), headers)
