"""The OpenAPI document, made from the routes and the types."""

from __future__ import annotations

import functools
import inspect
import re
from http import HTTPStatus
from typing import Any

import msgspec

from cuckoo_api import __version__
from cuckoo_api.http.artefacts import ARCHIVES, REPORTS, own_formats
from cuckoo_api.http.forms import MULTIPART, URLENCODED
from cuckoo_api.http.replies import JSON, Message
from cuckoo_api.http.routes import DIGITS, PATTERNS, ROUTES, WORD, Route
from cuckoo_api.http.schemas import FileForm, Readiness
from cuckoo_api.model.sample import Sample
from cuckoo_api.model.task import Guest, Status

REF = "#/components/schemas/{name}"

_Json = dict[str, Any]

_QUERY: dict[str, _Json] = {
    "status": {"enum": [*Status, ""], "type": "string"},
    "completed_after": {"type": "integer", "minimum": 0, "description": "Unix time"},
    "sample": {"type": "integer", "minimum": 0, "description": "The sample's id"},
    "after_id": {"type": "integer", "minimum": 0},
    "last_event_id": {
        "type": "integer",
        "minimum": 0,
        "maximum": (1 << 63) - 1,
        "description": "Begin after this event; as the header Last-Event-ID",
    },
    "elements": {"type": "string", "description": "One outermost key of the JSON report"},
    "tar": {"type": "string", "description": "An archive's compression: bz2, gz, tar or zst"},
    "tags": {"type": "string", "description": "Comma-separated; the task has them all"},
}


_PATH: dict[str, _Json] = {
    "priority": {"type": "integer", "minimum": 1},
}
"""Parts of a path of which the routes let more through than the handlers take: that is 400."""


@functools.cache
def document(routes: tuple[Route, ...] = ROUTES) -> bytes:
    """The document as JSON. Paths stand bare; the servers' list has ``/v1``."""
    kinds: set[type] = {Message, Sample, Guest}
    kinds.update(r.answer for r in routes if issubclass(r.answer, msgspec.Struct))
    kinds.update(r.form for r in routes if r.form is not None)
    _, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template=REF
    )
    paths: dict[str, _Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Cuckoo API", "version": __version__},
            "servers": [{"url": "/"}, {"url": "/v1"}],
            "security": [{"token": []}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _operation(route: Route) -> _Json:
    operation: _Json = {
        "tags": [route.path.split("/")[1]],
        "summary": _first_line(route),
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": _parameters(route),
        "responses": {"200": _response("OK", _answer(route), route.media, *route.also)},
    }
    if route.is_file:
        operation["responses"]["206"] = _response("Partial Content", {}, route.media, *route.also)
    for status in sorted(_errors(route)):
        is_own = status == 503 and route.answer is Readiness  # it says so in its own way
        schema = _reference(route.answer if is_own else Message)
        operation["responses"][str(status)] = _response(HTTPStatus(status).phrase, schema)
        if status == 429:
            operation["responses"]["429"]["headers"] = {
                "Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}
            }
    if route.form is not None:
        schema = {"schema": _reference(route.form)}
        media = (MULTIPART,) if route.form is FileForm else (MULTIPART, URLENCODED)
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(media, schema)}
    # the names of roles: OpenAPI 3.1 has them for schemes without scopes too
    operation["security"] = [] if route.is_open else [{"token": [route.rights]}]
    return operation


def _parameters(route: Route) -> list[_Json]:
    path = [
        {"name": name, "in": "path", "required": True, "schema": _part(name)}
        for name in _names(route)
    ]
    return path + [
        {"name": name, "in": "query", "schema": _QUERY.get(name, {"type": "string"})}
        for name in route.query
    ]


def _errors(route: Route) -> set[int]:
    errors = {*route.errors}
    if not route.is_open:
        errors |= {401, 403, 429}
    if route.form is not None:
        errors |= {400, 413}
    if route.query:
        errors |= {400}
    if _names(route):
        errors |= {404}
    if route.is_file:
        errors |= {412, 416}
    return errors


def _first_line(route: Route) -> str:
    return (inspect.getdoc(route.handler) or "").partition("\n")[0]


def _names(route: Route) -> list[str]:
    return re.findall(r"{(\w+)}", route.path)


def _part(name: str) -> _Json:
    if name == "format":
        return {"enum": [*REPORTS, *ARCHIVES, *sorted(own_formats())]}
    if name in _PATH:
        return _PATH[name]
    pattern = PATTERNS[name]
    if pattern == DIGITS:
        return {"type": "integer", "minimum": 0}
    if pattern == WORD:
        return {"type": "string", "minLength": 1}
    return {"enum": pattern.replace("\\", "").split("|")}


def _response(description: str, schema: _Json, media: str = JSON, *also: str) -> _Json:
    content: _Json = {media: {"schema": schema} if schema else {}}
    return {"description": description, "content": content | {other: {} for other in also}}


def _answer(route: Route) -> _Json:
    if route.answer is bytes:
        return {}
    schema = {"type": "object"} if route.answer is dict else _reference(route.answer)
    if not route.wrap:
        return schema
    key = route.wrap.removesuffix("[]")
    if key != route.wrap:
        schema = {"type": "array", "items": schema}
    return {"type": "object", "required": [key], "properties": {key: schema}}


def _reference(kind: type) -> _Json:
    return {"$ref": REF.format(name=kind.__name__)}
