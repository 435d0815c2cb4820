"""``metadata``: which files of the analysis there are besides the report."""

from __future__ import annotations

from typing import Any

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job

_FILES = (("pcap", "dump.pcap"), ("memory", "memory.dmp"), ("trace", "logs/trace.strace"))


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """The report's ``metadata``."""
    output: dict[str, Any] = {}
    for key, path in _FILES:
        try:
            with evidence.open(path) as source:
                folder, _, name = path.rpartition("/")
                output[key] = {"dirname": folder, "basename": name, "size": source.size}
        except OSError:
            continue  # not every analysis has each
    return {"output": output}
