"""The parts of a report: their order, and what stands in the place of one that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuckoo_api.model.sample import Sample
from cuckoo_api.reporting.job import Job

PROCESSORS: Mapping[str, str] = {
    name: f"cuckoo_api.reporting.processors.{name}"
    for name in (
        "target",
        "static",
        "strings",
        "behavior",
        "network",
        "dropped",
        "screenshots",
        "procmemory",
        "debug",
        "metadata",
    )
}
"""The report's key and the module that makes it, in the order in which they run. They are named
and not imported here: a library that cannot be loaded costs its own part only."""

YARA = "yara"
"""No part of its own: what the rules match goes into the parts that list files."""
SIGNATURES = "signatures"
HTML = "html"
REPORT = "report"
STEPS: tuple[str, ...] = (*PROCESSORS, YARA, SIGNATURES, HTML, REPORT)
"""All that the worker does, in order. What the page could not show stands in the report, so that
is written last."""

EMPTY: Mapping[str, Any] = {
    "static": {},
    "strings": [],
    "behavior": {
        "generic": [],
        "processes": [],
        "processtree": [],
        "summary": {},
        "apistats": {},
        "timeline": [],
    },
    "network": {
        "hosts": [],
        "domains": [],
        "dns": [],
        "http": [],
        "tcp": [],
        "udp": [],
        "icmp": [],
        "tls": [],
        "pcap_sha256": None,
    },
    "dropped": [],
    "screenshots": [],
    "procmemory": [],
    "debug": {"log": [], "cuckoo": [], "action": []},
    "metadata": {"output": {}},
    SIGNATURES: [],
}
"""A part that failed. ``target`` is made of what the task knows instead."""


def empty(section: str, job: Job) -> Any:
    """What stands in the place of a part that failed."""
    if section != "target":
        return EMPTY[section]
    if job.category == "url":
        return url_target(job)
    return file_target(job, sample_facts(job.sample) if job.sample else {})


def url_target(job: Job) -> dict[str, Any]:
    """``target`` of a URL."""
    return {"category": "url", "url": job.target}


def file_target(job: Job, facts: Mapping[str, Any]) -> dict[str, Any]:
    """``target`` of a file or of an archive's member, with what is known of its content."""
    sha256 = facts.get("sha256")
    path = f"storage/binaries/{sha256}" if sha256 else ""
    target: dict[str, Any] = {
        "category": job.category,
        "file": {"name": job.name, "path": path} | dict(facts),
    }
    if job.category == "archive":
        target["filename"] = job.filename
        target["archive"] = {"name": job.target.replace("\\", "/").rpartition("/")[2]}
    return target


def sample_facts(sample: Sample) -> dict[str, Any]:
    """What the store knows of a sample, under the report's names."""
    return {
        "size": sample.file_size,
        "type": sample.file_type,
        "md5": sample.md5,
        "sha1": sample.sha1,
        "sha256": sample.sha256,
        "sha512": sample.sha512,
        "crc32": sample.crc32,
        "ssdeep": sample.ssdeep,
        "tlsh": None,
        "yara": [],
        "urls": [],
    }
