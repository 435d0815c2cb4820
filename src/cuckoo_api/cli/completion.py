"""``cuckoo completion``: scripts made from the parser itself."""

from __future__ import annotations

import argparse

import shtab

FILES = {"targets", "sample", "output", "socket"}
FOLDERS = {"cwd", "into"}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell reads."""
    _mark(parser)
    return shtab.complete(parser, shell)


def _mark(parser: argparse.ArgumentParser) -> None:
    """Say which arguments are files and folders; of the others nothing is known."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for sub in action.choices.values():
                _mark(sub)
        elif action.dest in FILES and action.type is None:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
