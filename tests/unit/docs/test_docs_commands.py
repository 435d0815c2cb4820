"""Every command and option is in docs/commands.md and README.md, and no other."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest
from docskit import DOCS, ROOT, blocks, codes, page, section, table

from cuckoo_api.cli.main import build_parser

pytestmark = pytest.mark.slow

PAGE = page("docs/commands.md")


def commands(
    parser: argparse.ArgumentParser, name: str = "cuckoo"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, by the words to type."""
    deeper = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not any(action.required for action in deeper) and name != "cuckoo":
        yield name, parser
    for action in deeper:
        for word, sub in action.choices.items():
            yield from commands(sub, f"{name} {word}")


COMMANDS = dict(commands(build_parser()))


@pytest.mark.parametrize("text", [PAGE, section(page("README.md"), "Commands")])
def test_every_command_is_listed(text: str) -> None:
    assert set(table(text)) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_documented(name: str) -> None:
    text = section(PAGE, name)
    documented = [code for line in text.splitlines() if line.startswith("| `-")
                  for code in codes(line.split("|")[1])]  # fmt: skip
    options = [o for a in COMMANDS[name]._actions for o in a.option_strings]
    assert sorted(documented) == sorted(set(options) - {"-h", "--help"})


def test_every_command_that_is_shown_can_be_typed() -> None:
    shown = [
        shlex.split(re.split("[>|]", line)[0], comments=True)
        for path in (ROOT / "README.md", *DOCS.rglob("*.md"))
        for b in blocks(path.read_text()) if b.language == "sh" and not b.title
        for line in b.text.splitlines()
        if line.startswith("cuckoo ") and "--version" not in line  # which ends the program
    ]  # fmt: skip
    assert len(shown) >= 20
    for words in shown:
        build_parser().parse_args(words[1:])


def test_the_make_targets_that_are_shown_exist() -> None:
    targets = {line.partition(":")[0] for line in page("Makefile").splitlines() if ":" in line}
    shown = [
        line.split()[1]
        for name in ("README.md", "docs/index.md", "docs/development.md")
        for b in blocks(page(name)) if b.language == "sh"
        for line in b.text.splitlines() if line.startswith("make ")
    ]  # fmt: skip
    assert {"demo", "test", "setup"} <= set(shown) <= targets


def test_the_tox_environments_are_those_of_tox_ini() -> None:
    text = page("tox.ini")
    environments = set(re.findall(r"^\[testenv:(\w+)\]$", text, re.MULTILINE))
    documented = table(section(page("docs/development.md"), "What is checked"))
    assert set(documented) == environments
    [line] = [line for line in text.splitlines() if line.startswith("env_list = ")]
    listed = line.removeprefix("env_list = ").split(", ")
    assert environments - set(listed) == {"audit", "bench", "virtualbox"}, (
        "what make test leaves out"
    )
