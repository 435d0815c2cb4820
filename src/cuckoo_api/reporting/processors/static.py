"""``static``: what the sample's format says about it, without running it."""

from __future__ import annotations

import re
from typing import Any

from cuckoo_api.reporting.bounds import Notes, clip, printable
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job

HEAD = 4_096

_SHEBANG = re.compile(rb"#![ \t]*([^\s]+)[ \t]*([^\r\n]*)")


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """``{"elf": {…}}``, ``{"script": {…}}`` or nothing for a format that is not looked into."""
    if job.category == "url":
        return {}
    try:
        with evidence.sample() as source:
            head = source.read(HEAD)
            if head.startswith(b"\x7fELF"):
                if source.truncated:
                    notes.add(f"static: {source.size} bytes are too many to be looked into")
                    return {}
                # only here: it takes longer to load than most reports to make
                from cuckoo_api.reporting.processors.elf import describe_elf

                return {"elf": describe_elf(head + b"".join(source.chunks()), notes)}
    except FileNotFoundError:
        return {}  # the target's own note says so
    if match := _SHEBANG.match(head):
        return {"script": _script(match)}
    return {}


def _script(match: re.Match[bytes]) -> dict[str, str]:
    interpreter, arguments = clip(printable(match[1]), 256), clip(printable(match[2]), 256)
    return {"interpreter": interpreter, "arguments": arguments.strip()}
