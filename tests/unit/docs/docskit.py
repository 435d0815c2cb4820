"""Markdown as the tests of the documentation read it: sections, tables, code blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced piece of code."""

    language: str
    title: str
    text: str


def page(name: str) -> str:
    """A page's text; ``name`` is relative to the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order."""
    return [Block(*match.groups()) for match in _FENCE.finditer(text)]


def block(text: str, title: str) -> str:
    """The block with this title."""
    [found] = [block.text for block in blocks(text) if block.title == title]
    return found


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", text)


def section(text: str, heading: str) -> str:
    """What stands below a heading, its own subsections included. Code around words counts not."""
    found = [m for m in _HEADING.finditer(prose(text)) if m[2].replace("`", "") == heading]
    assert len(found) == 1, f"{len(found)} headings {heading!r}"
    start, rest = found[0], prose(text)
    for match in _HEADING.finditer(rest, start.end()):
        if len(match[1]) <= len(start[1]):
            return rest[start.end() : match.start()]
    return rest[start.end() :]


def rows(text: str) -> list[dict[str, str]]:
    """The rows of the first table, by the titles of its columns."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("|"):
            titles = _cells(line)
            next(lines)
            break
    else:
        raise AssertionError("there is no table here")
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = _cells(line)
        assert len(cells) == len(titles), line
        found.append(dict(zip(titles, cells, strict=True)))
    return found


def table(text: str) -> dict[str, dict[str, str]]:
    """The first table's rows by the code in their first column, each once."""
    listed = rows(text)
    found = {codes(next(iter(row.values())))[0]: row for row in listed}
    assert len(found) == len(listed), "a row is there twice"
    return found


def codes(text: str) -> list[str]:
    """Every piece of inline code."""
    return _CODE.findall(text)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
