"""What reporters share: the parts that were made, and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.processors.trace.autostart import restart_of
from cuckoo_api.reporting.sections import SIGNATURES, empty
from cuckoo_api.reporting.signatures import Fired, score, scoring


def part(request: Request, name: str) -> bytes:
    """A part of the report as JSON; one that failed is empty."""
    return Parts(request.sections).raw(name, empty(name, request.job))


def info(request: Request) -> dict[str, Any]:
    """The report's ``info``, with the score and what contributed to it."""
    try:
        found = msgspec.json.decode(part(request, SIGNATURES), type=list[Fired])
    except msgspec.MsgspecError:
        found = []
    restart = restart_of(Evidence(Path(request.folder), request.size_limit))
    return request.job.info | {
        "restart": msgspec.to_builtins(restart) if restart is not None else None,
        "score": score(item.severity for item in found),
        "scoring": scoring(found),
    }


def errors(request: Request, messages: list[str]) -> list[str]:
    """The report's ``debug.errors``: the task's own and what the steps had to say."""
    return list(dict.fromkeys([*request.job.task_errors, *messages]))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` when all went well. Raises OSError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
