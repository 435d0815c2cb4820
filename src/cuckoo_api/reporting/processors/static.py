"""``static``: what the sample's format says about it, without running it."""

from __future__ import annotations

from typing import Any

from cuckoo_api.reporting.archives import ARCHIVES, archive_kind
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence, Input
from cuckoo_api.reporting.filefacts import TYPE_HEAD, file_type
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors.formats.script import (
    MAX_SCRIPT,
    describe_script,
    language_of,
)

_ZIP = ARCHIVES["Zip archive data"]
"""Reads documents and packages as well that libmagic has better words for."""
_MACHO = (b"\xfe\xed\xfa\xce", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xcf\xfa\xed\xfe")
_FAT_MACHO = b"\xca\xfe\xba\xbe"
_LEAST_JAVA = 45
"""A compiled Java class begins in the same way; there, the version follows, and no count."""


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """``{"elf": {…}}``, ``{"pe_…": …}``, ``{"macho": {…}}``, ``{"script": {…}}`` or
    ``{"archive": {…}}``; nothing for a format that is not looked into."""
    if job.category == "url":
        return {}
    try:
        with evidence.sample() as source:
            return _describe(source, job.name, notes)
    except FileNotFoundError:
        return {}  # the target's own note says so


def _describe(source: Input, name: str, notes: Notes) -> dict[str, Any]:
    head = source.read(TYPE_HEAD)
    program = _program(head)
    if program:
        if source.truncated:
            notes.add(f"static: {source.size} bytes are too many to be looked into")
            return {}
        return _describe_program(program, head + b"".join(source.chunks()), notes)
    language = language_of(head, name)
    if language is not None:
        rest = source.read(MAX_SCRIPT - len(head))
        if source.size > len(head) + len(rest):
            notes.cut("static.script", len(head) + len(rest))
        return {"script": describe_script(head + rest, language)}
    archive = archive_kind(file_type(head)) or (_ZIP if head.startswith(b"PK\x03\x04") else None)
    if archive is not None:
        from cuckoo_api.reporting.processors.formats.archive import describe_archive

        return {"archive": describe_archive(source, archive, notes)}
    return {}


def _program(head: bytes) -> str:
    """Which kind of program begins so; empty for all else."""
    if head.startswith(b"\x7fELF"):
        return "elf"
    if head.startswith(b"MZ"):
        return "pe"
    fat = head.startswith(_FAT_MACHO) and int.from_bytes(head[4:8], "big") < _LEAST_JAVA
    return "macho" if fat or head[:4] in _MACHO else ""


def _describe_program(kind: str, data: bytes, notes: Notes) -> dict[str, Any]:
    # imported only here: the parser takes longer to load than most reports to make
    if kind == "elf":
        from cuckoo_api.reporting.processors.formats.elf import describe_elf

        return {"elf": describe_elf(data, notes)}
    if kind == "pe":
        from cuckoo_api.reporting.processors.formats.pe import describe_pe

        return describe_pe(data, notes)
    from cuckoo_api.reporting.processors.formats.macho import describe_macho

    return {"macho": describe_macho(data, notes)}
