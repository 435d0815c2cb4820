"""What clients may rely on is named by a test: a field that no test names may go unnoticed.

A test names a field where it is a key of what is expected, is looked up or compared, or stands in
a query. Whether the value is the right one is that test's matter.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from docskit import ROOT, codes, page, section, table

from cuckoo_api.analysis.system import SystemStatus
from cuckoo_api.http import routes, schemas
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import Sample
from cuckoo_api.model.task import Guest, Status

pytestmark = pytest.mark.slow

HTTP = "unit/http/test_http_"
TESTS = {
    schemas.Task: f"{HTTP}tasks.py",
    Guest: f"{HTTP}tasks.py",
    Sample: f"{HTTP}tasks.py",
    schemas.SampleView: f"{HTTP}*.py",
    Machine: f"{HTTP}system.py",
    SystemStatus: f"{HTTP}system.py",
    schemas.FileForm: f"{HTTP}submit.py",
    schemas.UrlForm: f"{HTTP}submit.py",
    schemas.SubmitForm: f"{HTTP}submit_many.py",
    schemas.Submitted: f"{HTTP}submit_many.py",
    schemas.Readiness: f"{HTTP}system.py",
}
"""Where the fields of a type are tested; of those that stand nowhere here, anywhere."""

REPORT = {
    "info": "id score category package platform machine started ended duration owner custom route"
    " version options",
    "target": "category file url",
    "file": "name path size type md5 sha1 sha256 sha512 crc32 ssdeep yara",
    "signature": "name description severity ttp families references marks",
    "behavior": "generic processes processtree summary apistats",
    "network": "hosts domains dns http tcp udp icmp tls pcap_sha256",
    "domain": "domain ip",
    "question": "request type answers",
    "debug": "errors log cuckoo action",
    "the report": "info target signatures behavior network dropped static strings screenshots"
    " procmemory virustotal debug metadata",
}
"""The keys that Cuckoo 2's clients read from a report."""


def kinds() -> Iterator[type[msgspec.Struct]]:
    """Every type that goes in or out over HTTP."""
    found = {*TESTS, *(r.answer for r in routes.ROUTES), *(r.form for r in routes.ROUTES)}
    for kind in found:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield kind


@functools.cache
def named(pattern: str) -> frozenset[str]:
    """Every name that these tests name."""
    return frozenset(
        name
        for path in (ROOT / "tests").glob(pattern)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in names(node)
    )


def names(node: ast.AST) -> Iterator[Any]:
    match node:
        case ast.Dict(keys=keys):
            yield from (key.value for key in keys if isinstance(key, ast.Constant))
        case ast.Subscript(slice=ast.Constant(value=value)):
            yield value
        case ast.Call(func=ast.Attribute(attr="upload") | ast.Name(id="submit"), keywords=fields):
            yield from (field.arg for field in fields)
        case ast.Call(args=[ast.Constant(value=value), *_]):
            yield value  # part("file", …)
        case ast.Compare():
            yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
        case ast.Constant(value=str(text)):
            yield from re.findall(r"(?:^|[?&])(\w+)=", text)


def test_every_field_that_goes_in_or_out_is_named_by_its_tests() -> None:
    for kind in kinds():
        unnamed = set(kind.__struct_fields__) - named(TESTS.get(kind, "*/**/test_*.py"))
        assert not unnamed, f"{kind.__name__}: no test names {sorted(unnamed)}"


def test_every_filter_and_parameter_is_named() -> None:
    asked = {name for route in routes.ROUTES for name in route.query}
    assert asked <= named(f"{HTTP}*.py")
    assert set(routes.FILTERS) <= named(f"{HTTP}tasks.py")


def test_every_state_is_named() -> None:
    assert set(Status) <= named("*/**/test_*.py")


@pytest.mark.parametrize("part", REPORT)
def test_every_key_of_a_report_that_clients_know_is_named(part: str) -> None:
    assert set(REPORT[part].split()) <= named("fake/test_whole_report.py")


def test_every_key_of_what_is_told_is_named() -> None:
    text = page("docs/api.md")
    for event, row in table(section(text, "Events")).items():
        keys = codes(row["Keys of `data`"].partition(", as in")[0].partition(". ")[0])
        assert set(keys) <= named("*/**/test_*event*.py"), event
    assert {"id", "status", "task"} <= named("unit/analysis/test_webhooks.py")


def test_every_route_is_asked() -> None:
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("unit/http", "fake")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    )
    for route in routes.ROUTES:
        pattern = "".join(
            r"[^/\s\"']+" if part.startswith("{") else re.escape(part)
            for part in re.split(r"({\w+})", route.path)
        )
        assert re.search(rf"{pattern}(?=[\s\"'?/{{]|$)", text), route.path
