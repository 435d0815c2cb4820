"""docs/api.md lists the routes, fields, states and errors that there are, and no others."""

from __future__ import annotations

import re

import msgspec
import pytest
from docskit import ROOT, blocks, codes, page, prose, section, table

from cuckoo_api.analysis.system import SystemStatus
from cuckoo_api.http import access, forms, routes, schemas
from cuckoo_api.http.openapi import document
from cuckoo_api.http.replies import FIXED_HEADERS
from cuckoo_api.model import errors
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Guest, Status

pytestmark = pytest.mark.slow

PAGE = page("docs/api.md")

_ROUTE = re.compile(r"(?:GET|POST|PUT|DELETE) /\S*")


def shown(text: str) -> list[str]:
    return [code for code in codes(text) if _ROUTE.fullmatch(code)]


def documented() -> list[str]:
    """Every route that the page describes: on a line that holds routes and nothing else."""
    lines = re.findall(r"^`[^`]+`(?: `[^`]+`)*$", prose(PAGE), re.MULTILINE)
    return shown("\n".join(lines))


def test_every_route_is_documented_once_and_no_other() -> None:
    assert sorted(documented()) == sorted(f"{r.method} {r.path}" for r in routes.ROUTES)


def test_what_is_said_to_be_missing_is_missing() -> None:
    # one is served, and says itself that it does nothing
    served = {f"{r.method} {r.path}" for r in routes.ROUTES} - {"GET /vpn/status"}
    missing = shown(section(PAGE, "Not there yet"))
    assert missing
    assert served.isdisjoint(missing)


def test_every_field_of_a_submission_is_documented() -> None:
    found = set(table(section(PAGE, "A file")))
    assert found == set(schemas.FileForm.__struct_fields__)
    assert found - {"file", "unique"} == set(schemas.UrlForm.__struct_fields__) - {"url"}


def test_every_filter_of_the_list_is_documented() -> None:
    assert list(table(section(PAGE, "List"))) == list(routes.FILTERS)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("The task object", schemas.Task),
        ("The sample object", schemas.SampleView),
        ("The machine object", Machine),
        ("The status object", SystemStatus),
    ],
)
def test_every_key_of_an_answer_is_documented(heading: str, kind: type[msgspec.Struct]) -> None:
    assert list(table(section(PAGE, heading))) == list(kind.__struct_fields__)


def test_the_guest_of_a_task_is_documented() -> None:
    row = table(section(PAGE, "The task object"))["guest"]
    assert codes(row["Meaning"])[:-1] == list(Guest.__struct_fields__)


def test_every_state_is_documented() -> None:
    assert set(table(section(PAGE, "The task object").split("The states:")[1])) == set(Status)


def test_every_status_that_a_route_may_answer_is_documented() -> None:
    listed = set(re.findall(r"^\| (\d+) \|", section(PAGE, "Errors"), re.MULTILINE))
    paths = msgspec.json.decode(document())["paths"].values()
    answered = {
        status for path in paths for operation in path.values() for status in operation["responses"]
    }
    assert listed == {status for status in answered if status >= "400"} | {"405"}


def test_every_error_code_is_documented_with_its_status() -> None:
    found = table(section(PAGE, "Errors").split("by a code:")[1])
    code = re.compile(r'^    code = "(\w+)"', re.MULTILINE)
    sources = (ROOT / "src/cuckoo_api").rglob("*.py")
    assert set(found) == {name for path in sources for name in code.findall(path.read_text())}
    for module in (errors, access):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, errors.CuckooError):
                assert found[kind.code]["Status"] == str(kind.status)


def test_the_fixed_headers_are_documented() -> None:
    text = " ".join(section(PAGE, "For every route").split())
    for name, value in FIXED_HEADERS.items():
        if name != "Server":
            assert f"`{name}: {value}`" in text
    assert f"`{FIXED_HEADERS['Server']}`" in section(PAGE, "Differences from Cuckoo 2.0.7")


def test_the_limits_in_the_text_are_those_of_the_code() -> None:
    assert f"at most\n{forms.MAX_FILES}, become one task each" in PAGE
    assert forms.MAX_FIELD_BYTES == 1 << 20
    assert "may have 1 MiB together" in " ".join(PAGE.split())


def test_the_paths_of_the_examples_are_served() -> None:
    patterns = [re.sub(r"{\w+}", "[^/]+", route.path) for route in routes.ROUTES]
    used = [
        path
        for block in blocks(PAGE) if block.language == "sh"
        for path in re.findall(r"\$URL(/[\w/]*)", block.text)
    ]  # fmt: skip
    assert used
    for path in used:
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path
