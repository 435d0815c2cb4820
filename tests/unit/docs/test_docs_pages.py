"""What holds for every page: it is reached, and what it names is there."""

from __future__ import annotations

import re

import pytest
from docskit import DOCS, ROOT, blocks, codes, page, prose

pytestmark = pytest.mark.slow

PAGES = [
    "README.md",
    "CHANGELOG.md",
    *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")),
]
FOLLOWERS = [
    path
    for folder in (ROOT / "tests", ROOT / "plugins")
    for path in folder.rglob("test_*.py")
    if "pagekit" in path.read_text(encoding="utf-8")
]
"""Tests that do what pages say, see tests/pagekit.py."""
RECORDS = sorted(DOCS.glob("adr/0*.md"))


def anchors(text: str) -> set[str]:
    """The names under which headings can be linked, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page(name))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.is_file(), target
        if anchor:
            assert anchor in anchors(there.read_text()), target


@pytest.mark.parametrize("name", PAGES)
def test_files_of_the_project_that_are_named_exist(name: str) -> None:
    for code in codes(prose(page(name))):
        if re.fullmatch(r"(?:src|tests|plugins|docs|\.ci)/[\w./-]*", code):
            assert (ROOT / code).exists(), code
        if re.fullmatch(r"[a-z]+/[\w/]+\.py", code) and not code.startswith(("src/", "tests/")):
            assert (ROOT / "src/cuckoo_api" / code).exists(), code


@pytest.mark.parametrize(
    "name", [*PAGES, *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/README.md"))]
)
def test_what_a_reader_is_to_type_is_done_by_a_test(name: str) -> None:
    text = page(name)
    languages = {block.language for block in blocks(text)}
    assert not languages & {"bash", "shell", "zsh"}, "sh, console or text"
    if "sh" in languages:
        assert any(f'"{name}"' in path.read_text() for path in FOLLOWERS), "no test follows it"
    told = re.findall(r"^<!-- as (\S+) does -->\n\n```console$", text, re.MULTILINE)
    assert len(told) == text.count("\n```console\n"), "a comment before it names its test"
    for path in told:
        assert (ROOT / path).is_file(), path


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", page("mkdocs.yml").partition("\nnav:")[2])
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_every_decision_record_is_listed_and_complete() -> None:
    index = page("docs/adr/README.md")
    assert re.findall(r"^\| \[\d+\]\((.*)\) \|", index, re.MULTILINE) == [
        path.name for path in RECORDS
    ]
    for path in RECORDS:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
        ]
        title = text.partition("\n")[0].partition(": ")[2]
        assert f"({path.name}) | {title} |" in index


def test_the_licence_is_whole() -> None:
    text = page("LICENSE")
    assert "Version 2.0, January 2004" in text
    assert "limitations under the License." in text


def test_nothing_is_left_to_be_written() -> None:
    for name in PAGES:
        assert not re.search(r"\b(TODO|FIXME|TBD|lorem)\b", page(name)), name
        assert (ROOT / name).stat().st_size > 300, name
