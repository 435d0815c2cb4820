"""``dropped``: the files that the sample left, as the guest sent them."""

from __future__ import annotations

from typing import Any

import msgspec

from cuckoo_api.reporting.bounds import Notes, clip
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.filefacts import describe
from cuckoo_api.reporting.job import Job

MAX_FILES = 1_000
MAX_METADATA = 16 << 20
MAX_PATH = 4_096
MAX_PIDS = 64


class Origin(msgspec.Struct, frozen=True):
    """A line of files.json: where a stored file comes from."""

    path: str
    """In the analysis folder: ``files/…``, ``shots/…``, …"""
    filepath: str | None = None
    """In the guest."""
    pids: list[int] = []


def run(evidence: Evidence, job: Job, notes: Notes) -> list[dict[str, Any]]:
    """The report's ``dropped``, in the order of the stored names."""
    names = evidence.names("files")
    if len(names) > MAX_FILES:
        notes.cut("dropped", MAX_FILES)
    known = origins(evidence.read("files.json", MAX_METADATA), notes)
    entries = []
    for name in names[:MAX_FILES]:
        path = f"files/{name}"
        try:
            with evidence.open(path) as source:
                facts = describe(source)
        except OSError as exc:
            notes.add(f"dropped: {name!r} cannot be read: {exc.strerror or exc}")
            continue
        entries.append(_entry(name, known.get(path, Origin(path)), facts))
    return entries


def origins(data: bytes, notes: Notes) -> dict[str, Origin]:
    """files.json, by the path in the analysis folder. A broken line is passed over."""
    decoder = msgspec.json.Decoder(Origin)
    known: dict[str, Origin] = {}
    broken = 0
    for line in data.splitlines():
        if not line.strip():
            continue
        try:
            origin = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            broken += 1
            continue
        known[origin.path] = origin
    if broken:
        notes.add(f"files.json: {broken} lines were not understood")
    return known


def _entry(name: str, origin: Origin, facts: dict[str, Any]) -> dict[str, Any]:
    filepath = clip(origin.filepath or "", MAX_PATH)
    shown = filepath.replace("\\", "/").rpartition("/")[2] or name
    return {
        "name": _sound(shown),
        "path": _sound(f"files/{name}"),
        "filepath": _sound(filepath),
        "pids": origin.pids[:MAX_PIDS],
    } | facts


def _sound(text: str) -> str:
    """A file name that is not UTF-8, in a form that JSON can carry."""
    return text.encode("utf-8", "backslashreplace").decode()
