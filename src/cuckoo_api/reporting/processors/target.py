"""``target``: what was analysed."""

from __future__ import annotations

from typing import Any

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.filefacts import describe
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.sections import file_target, sample_facts, url_target


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """The report's ``target``."""
    if job.category == "url":
        return url_target(job)
    facts: dict[str, Any] = {}
    try:
        with evidence.sample() as source:
            if not source.truncated:
                facts = describe(source)
    except OSError as exc:
        notes.add(f"target: the sample cannot be read: {exc.strerror or exc}")
    if not facts and job.sample is not None:
        # it is too large to be read here, or gone; it was hashed when it was received
        facts = sample_facts(job.sample)
    if facts and job.sample is not None and facts["sha256"] != job.sample.sha256:
        notes.add("target: the stored sample is not the file that was submitted")
    return file_target(job, facts)
