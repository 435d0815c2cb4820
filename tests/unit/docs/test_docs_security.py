"""Each promise of docs/security.md names tests that are there, and that nobody has switched off."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from docskit import ROOT, codes, page, rows, section

from cuckoo_api.confinement import confinement

pytestmark = pytest.mark.slow

PAGE = page("docs/security.md")
TABLES = [part for part in re.split(r"\n\n+", PAGE) if part.startswith("| Promise |")]
PROMISES = [(row["Promise"], row["Proven by"]) for text in TABLES for row in rows(text)]
NAMED = sorted(set(re.findall(r"`(test_\w+\.py::\w+)`", PAGE)))


@cache
def functions_of(file: str) -> dict[str, ast.AST]:
    """The functions of all test files of this name."""
    found: dict[str, ast.AST] = {}
    for folder in (ROOT / "tests", *ROOT.glob("plugins/*/tests")):
        for path in folder.rglob(file):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    found[node.name] = node
    return found


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_there_and_runs(name: str) -> None:
    file, test = name.split("::")
    assert test in functions_of(file), f"no such test in a {file}"
    decorators = " ".join(ast.unparse(one) for one in functions_of(file)[test].decorator_list)
    assert not re.search(r"\b(skip|skipif|xfail)\b", decorators)


@pytest.mark.parametrize(("promise", "proof"), PROMISES)
def test_each_promise_names_its_tests_and_nothing_else(promise: str, proof: str) -> None:
    assert promise.endswith(".")
    named = codes(proof)
    assert named, promise
    assert set(named) <= set(NAMED)
    assert not re.sub(r"`[^`]*`", "", proof).strip()


@pytest.mark.parametrize(
    "heading",
    [
        "Clients",
        "Guests and their machines",
        "Guests and the network",
        "Samples, results and reports",
        "Worker processes",
        "Plugins",
        "Neighbours",
    ],
)
def test_each_party_has_promises(heading: str) -> None:
    assert "| Promise | Proven by |" in section(PAGE, heading)


def test_the_layers_are_those_that_confine_workers() -> None:
    layers = [codes(row["Layer"])[0] for row in rows(section(PAGE, "Worker processes"))]
    assert layers == [layer.name for layer in confinement()]
