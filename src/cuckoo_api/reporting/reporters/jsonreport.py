"""``reports/report.json``, put together from the parts without holding them in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.reporters.output import errors, info, replacing
from cuckoo_api.reporting.sections import PROCESSORS, SIGNATURES, empty

CONSTANT: dict[str, Any] = {"virustotal": {}}
"""Keys that clients expect and that nothing here fills."""


def write_json_report(request: Request, messages: list[str]) -> None:
    """Write the report whole, or leave the earlier one. Raises OSError."""
    with replacing(Path(request.folder) / "reports" / "report.json") as file:
        _write(file, request, messages)


def _write(file: BinaryIO, request: Request, messages: list[str]) -> None:
    file.write(b'{"info":' + msgspec.json.encode(info(request)))
    for key in (*PROCESSORS, SIGNATURES):
        file.write(b"," + msgspec.json.encode(key) + b":")
        part = Path(request.sections) / f"{key}.json"
        if key == "debug":
            file.write(b'{"errors":' + msgspec.json.encode(errors(request, messages)) + b",")
            _copy(file, part, msgspec.json.encode(empty(key, request.job)), skip=1)
        else:
            _copy(file, part, msgspec.json.encode(empty(key, request.job)))
    for key in request.own_parts:
        file.write(b"," + msgspec.json.encode(key) + b":")
        _copy(file, Path(request.sections) / f"{key}.json", b"null")
    for key, value in CONSTANT.items():
        file.write(b"," + msgspec.json.encode(key) + b":" + msgspec.json.encode(value))
    file.write(b"}")


def _copy(file: BinaryIO, part: Path, instead: bytes, skip: int = 0) -> None:
    """Copy a part but for its first ``skip`` bytes; ``instead`` when it was never made."""
    try:
        source = part.open("rb")
    except FileNotFoundError:
        file.write(instead[skip:])
        return
    with source:
        source.seek(skip)
        shutil.copyfileobj(source, file, 1 << 20)
