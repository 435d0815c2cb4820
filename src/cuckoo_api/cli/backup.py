"""``cuckoo backup`` and ``cuckoo restore``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuckoo_api.cli.common import complaints, console, need_cwd, text
from cuckoo_api.cli.terminal import size_text
from cuckoo_api.server.backup import Progress, back_up
from cuckoo_api.server.restore import restore

SHOWN_EVERY = 50
"""Files between two lines of progress."""


def backup(arguments: argparse.Namespace, cwd: Path) -> int:
    """Write the file, and say what is in it."""
    need_cwd(cwd)
    target = Path(arguments.file)
    without = [
        unit
        for unit, left_out in (
            ("storage/binaries", arguments.no_binaries),
            ("storage/analyses", arguments.no_analyses),
        )
        if left_out
    ]
    with _shown(f"{target}: the database") as progress:
        files, size = back_up(cwd, target, without=without, progress=progress)
    console.print(
        text(f"{target}: {files} files, {size_text(size)}. It holds tokens: keep it private."),
        soft_wrap=True,
    )
    return 0


def bring_back(arguments: argparse.Namespace, cwd: Path) -> int:
    """Fill the working directory, and say what with."""
    source = Path(arguments.file)
    with _shown(f"{source}: reading") as progress:
        head = restore(source, cwd, force=arguments.force, progress=progress)
    console.print(
        text(
            f"{cwd} is as it was on {head.made_on} UTC: {', '.join(head.units)}. "
            "'cuckoo doctor' checks it."
        ),
        soft_wrap=True,
    )
    return 0


@contextmanager
def _shown(first: str) -> Iterator[Progress]:
    with complaints.status(text(first)) as status:

        def show(files: int, size: int) -> None:
            if files % SHOWN_EVERY == 0:
                status.update(text(f"{files} files, {size_text(size)}"))

        yield show
