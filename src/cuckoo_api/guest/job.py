"""One analysis as the guest is told of it: ``analysis.conf`` and the sample's name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cuckoo_api.model.task import DATE_FORMAT, Task

_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\<>:\"|?*\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestJob:
    """What a guest shall do."""

    task: Task
    sample: Path | None
    """The file to run; None for a URL."""
    analyzer: Path
    """A zip from :func:`~cuckoo_api.guest.analyzer.analyzer_zip`."""
    resultserver_ip: str
    resultserver_port: int
    timeout: int
    """Seconds that the sample runs."""

    @property
    def file_name(self) -> str:
        """The sample's base name, made safe for any guest's file system; keeps its extension."""
        given = self.task.options.get("filename") or self.task.target
        name = _UNSAFE.sub("_", re.split(r"[/\\]", given)[-1]).strip(" .")
        stem, dot, extension = name.rpartition(".")
        if not dot:
            return _cut(name, 150) or "sample"
        return (_cut(stem, 150) or "sample") + dot + _cut(extension, 30)

    def conf(self) -> str:
        """``analysis.conf``. Nothing that a client gave can add a line to it."""
        task = self.task
        sample = task.sample if not isinstance(task.sample, dict) else None
        options = ",".join(f"{key}={value}" for key, value in task.options.items())
        values = {
            "id": str(task.id),
            "category": "url" if task.category == "url" else "file",
            "target": task.target,
            "package": task.package,
            "file_name": self.file_name if self.sample else "",
            "file_type": sample.file_type if sample else "",
            "ip": self.resultserver_ip,
            "port": str(self.resultserver_port),
            "timeout": str(self.timeout),
            "clock": _clock(task.clock),
            "enforce_timeout": str(task.enforce_timeout),
            "terminate_processes": "False",
            "options": options,
        }
        lines = [f"{key} = {_one_line(value)}" for key, value in values.items()]
        return "\n".join(["[analysis]", *lines, ""])


def _clock(text: str | None) -> str:
    """The date as Cuckoo 2 writes it; now when none was asked for."""
    try:
        date = datetime.strptime(text, DATE_FORMAT).replace(tzinfo=UTC) if text else None
    except ValueError:
        date = None
    return (date or datetime.now(UTC)).strftime("%Y%m%dT%H:%M:%S")


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _cut(text: str, size: int) -> str:
    """At most so many bytes of UTF-8, whole characters."""
    return text.encode()[:size].decode(errors="ignore")
