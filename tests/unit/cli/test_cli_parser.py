"""What can be typed, and what is told to whoever asks how."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckoo_api import __version__
from cuckoo_api.cli.main import build_parser, main

pytestmark = pytest.mark.slow


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Every command, by the words to type; none is the program itself."""
    yield words
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from commands(sub, (*words, word))


COMMANDS = sorted(commands(build_parser()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])

    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith(f"usage: {' '.join(['cuckoo', *words])}")
    for option in [line.split()[0] for line in text.splitlines() if line.startswith("  -")]:
        assert option.rstrip(",").startswith("-")


@pytest.mark.parametrize("words", [w for w in COMMANDS if w], ids=" ".join)
def test_every_command_is_in_the_help_of_the_one_above(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words[:-1], "--help"])

    lines = capsys.readouterr().out.splitlines()
    assert words[-1] in [line.split()[0] for line in lines if line.strip()]


def test_help_waits_for_no_library() -> None:
    code = (
        "import sys; from cuckoo_api.cli.main import build_parser; build_parser().format_help(); "
        "print(sorted({'aiohttp', 'sqlalchemy', 'rich', 'structlog'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def chosen(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[argparse.Namespace, Path]:
    """What would be run, and where."""
    found: list[tuple[argparse.Namespace, Path]] = []
    module = importlib.import_module("cuckoo_api.cli.main")  # the package has its function only
    monkeypatch.setattr(module, "_dispatch", lambda *given: found.append(given) or 0)
    assert main(list(words)) == 0
    return found[0]


def test_no_command_means_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, cwd = chosen(monkeypatch)
    assert arguments.command == "api"
    assert vars(arguments) == vars(chosen(monkeypatch, "api")[0])
    assert cwd == Path.home() / ".cuckoo"


def test_the_working_directory_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUCKOO_CWD", "/from/environment")
    assert chosen(monkeypatch)[1] == Path("/from/environment")
    arguments, cwd = chosen(monkeypatch, "--cwd", str(tmp_path))
    assert (arguments.command, cwd) == ("api", tmp_path)


def test_the_servers_options(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["api", "-H", "0.0.0.0", "-p", "0", "--socket", "/s", "--no-engine", "--debug"]
    arguments, _ = chosen(monkeypatch, *words)
    assert (arguments.host, arguments.port, arguments.socket) == ("0.0.0.0", 0, "/s")
    assert arguments.no_engine
    assert arguments.debug


@pytest.mark.parametrize(
    "words", [["nonesuch"], ["api", "-p", "http"], ["submit"], ["guest"], ["token"]], ids=" ".join
)
def test_what_is_mistyped_is_told_with_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)

    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith("usage: cuckoo")
    assert said.out == ""


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"cuckoo-api-server {__version__}\n"
