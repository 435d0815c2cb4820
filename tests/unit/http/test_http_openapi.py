"""The document that describes the interface leaves nothing out, and says nothing that is not so."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from httpkit import Site

from cuckoo_api.http.openapi import document
from cuckoo_api.http.routes import ROUTES

METHODS = {"GET", "POST"}
OPEN = {route.path for route in ROUTES if route.is_open}


@pytest.fixture(scope="module")
def described() -> Any:
    return msgspec.json.decode(document())


async def test_it_is_served_as_it_is_made(site: Site, described: Any) -> None:
    reply = await site.client.get("/openapi.json")
    assert reply.json == described
    assert described["openapi"].startswith("3.1")


async def test_every_registered_route_is_in_it_and_no_other(site: Site, described: Any) -> None:
    registered = {
        (route.method, route.resource.canonical)
        for route in site.app.router.routes()
        if route.method in METHODS and route.resource is not None
    }
    shown = {
        (method.upper(), f"{server['url'].rstrip('/')}{path}{slash}")
        for server in described["servers"]
        for path, operations in described["paths"].items()
        for method in operations
        for slash in ("", "/")
    }
    assert shown == registered


def test_every_reference_in_it_leads_somewhere(described: Any) -> None:
    found = set(re.findall(r'"#/components/schemas/(\w+)"', document().decode()))
    assert found == set(described["components"]["schemas"])


def test_every_operation_says_what_it_does_and_answers(described: Any) -> None:
    ids = []
    for path, operations in described["paths"].items():
        for operation in operations.values():
            ids.append(operation["operationId"])
            assert operation["summary"], path
            assert {"200"} < set(operation["responses"]) or path in OPEN, path
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert (operation.get("security") == []) is (path in OPEN)
    assert len(ids) == len(set(ids))


def test_forms_show_their_fields(described: Any) -> None:
    schemas = described["components"]["schemas"]
    submission = {
        "package", "timeout", "priority", "options", "machine", "platform", "tags", "custom",
        "owner", "clock", "memory", "enforce_timeout", "callback",
    }  # fmt: skip
    assert set(schemas["FileForm"]["properties"]) == submission | {"file", "unique"}
    assert schemas["FileForm"]["required"] == ["file"]
    assert set(schemas["UrlForm"]["properties"]) == submission | {"url"}
    assert schemas["UrlForm"]["required"] == ["url"]
    body = described["paths"]["/tasks/create/url"]["post"]["requestBody"]
    assert set(body["content"]) == {"multipart/form-data", "application/x-www-form-urlencoded"}


def test_every_format_of_a_report_is_described(described: Any) -> None:
    operation = described["paths"]["/tasks/report/{task_id}/{format}"]["get"]
    [form] = [p["schema"]["enum"] for p in operation["parameters"] if p["name"] == "format"]
    assert form == ["json", "html", "all", "dropped", "package_files"]
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/html; charset=utf-8",
        "application/x-tar; charset=UTF-8",
    }
