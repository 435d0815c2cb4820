"""``reports/report.json``, put together from the parts without holding them in memory."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.sections import PROCESSORS, SIGNATURES, empty
from cuckoo_api.reporting.signatures import score

CONSTANT: dict[str, Any] = {"virustotal": {}}
"""Keys that clients expect and that nothing here fills."""


class _Severity(msgspec.Struct):
    severity: int


def write_json_report(request: Request, messages: list[str]) -> None:
    """Write the report whole, or leave the earlier one. Raises OSError."""
    reports = Path(request.folder) / "reports"
    beside = reports / f".report.json.{secrets.token_hex(4)}"
    try:
        with beside.open("xb") as file:
            _write(file, request, messages)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(reports / "report.json")
    finally:
        beside.unlink(missing_ok=True)
    handle = os.open(reports, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(file: BinaryIO, request: Request, messages: list[str]) -> None:
    sections = Path(request.sections)
    info = dict(request.job.info)
    info["score"] = _score(sections / f"{SIGNATURES}.json")
    file.write(b'{"info":' + msgspec.json.encode(info))
    for key in (*PROCESSORS, SIGNATURES):
        file.write(b"," + msgspec.json.encode(key) + b":")
        part = sections / f"{key}.json"
        if key == "debug":
            errors = list(dict.fromkeys([*request.job.task_errors, *messages]))
            file.write(b'{"errors":' + msgspec.json.encode(errors) + b",")
            _copy(file, part, msgspec.json.encode(empty(key, request.job)), skip=1)
        else:
            _copy(file, part, msgspec.json.encode(empty(key, request.job)))
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


def _score(part: Path) -> float:
    try:
        found = msgspec.json.decode(part.read_bytes(), type=list[_Severity])
    except (FileNotFoundError, msgspec.MsgspecError):
        return 0.0
    return score(item.severity for item in found)
