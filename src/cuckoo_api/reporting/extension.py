"""What installed packages add to a report: parts of their own, and files in other formats.

Only names are read here, from the packages' metadata; what they name is loaded in the worker, where
it is confined as every parser is.

An entry point of the group ``cuckoo_api.processors`` names a function that makes a part of the
report under the entry point's name::

    def run(evidence: Evidence, job: Job, notes: Notes) -> Any: ...

One of the group ``cuckoo_api.reporters`` names a function that writes the finished report in a
format of its own, ``reports/report.<name>``::

    def write(report: Report, file: BinaryIO) -> None: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job, Request
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.reporters.output import errors, info, part, replacing
from cuckoo_api.reporting.sections import PROCESSORS, SIGNATURES, STEPS, YARA

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Evidence", "Job", "Notes", "Report"]

PARTS_GROUP = "cuckoo_api.processors"
FORMATS_GROUP = "cuckoo_api.reporters"
PART, FORMAT = "processor ", "reporter "
"""How the names of their steps begin, also in ``debug.errors``."""
TAKEN_PARTS = {*PROCESSORS, SIGNATURES, YARA, "info", "virustotal"}
TAKEN_FORMATS = {"json", "html", "all", "dropped", "package_files"}
MAX_PART = 64 << 20

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Unusable(Exception):
    """An entry point that the server cannot use; the text says why."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """The names that installed packages bring, in order."""

    parts: tuple[str, ...]
    formats: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """What the parts are called in the report."""
        return tuple(name for name in self.parts if _fault(name, TAKEN_PARTS) is None)

    @property
    def files(self) -> tuple[str, ...]:
        """The formats that can be asked for besides those of the core."""
        return tuple(name for name in self.formats if _fault(name, TAKEN_FORMATS) is None)

    @property
    def steps(self) -> tuple[str, ...]:
        """All that the worker does: the parts come before what looks at parts, the files last."""
        at = STEPS.index(YARA)
        own = (f"{PART}{name}" for name in self.parts)
        files = (f"{FORMAT}{name}" for name in self.formats)
        return (*STEPS[:at], *own, *STEPS[at:-1], *files, STEPS[-1])


def extensions() -> Extensions:
    """Read the names anew. Blocks for some milliseconds."""
    return Extensions(tuple(_points(PARTS_GROUP)), tuple(_points(FORMATS_GROUP)))


class Report:
    """The report as a reporter sees it. A part is taken into memory when it is asked for."""

    def __init__(self, request: Request, messages: list[str]) -> None:
        self._request = request
        self._messages = messages

    def part(self, name: str) -> Any:
        """``target``, ``behavior``, …, as ``report.json`` has it; None for what is no part."""
        if name == "info":
            return self.info
        if name == "debug":
            return {"errors": self.errors} | msgspec.json.decode(part(self._request, name))
        known = name in PROCESSORS or name == SIGNATURES
        if not known:
            return Parts(self._request.sections).read(name) if _NAME.fullmatch(name) else None
        return msgspec.json.decode(part(self._request, name))

    @property
    def info(self) -> dict[str, Any]:
        """The task, its machine, and the score."""
        return info(self._request)

    @property
    def errors(self) -> list[str]:
        """``debug.errors`` as far as they are known when this is written."""
        return errors(self._request, self._messages)


def make_part(step: str, evidence: Evidence, job: Job, parts: Parts, notes: Notes) -> None:
    """Do the step of a package's own part. Raises what the package raises, and Unusable."""
    name = step.removeprefix(PART)
    run = _load(PARTS_GROUP, name, TAKEN_PARTS)
    made = msgspec.json.encode(run(evidence, job, notes))
    if len(made) > MAX_PART:
        raise Unusable(f"it made more than {MAX_PART >> 20} MiB")
    parts.keep(name, msgspec.Raw(made))


def write_format(step: str, request: Request, messages: list[str]) -> None:
    """Do the step of a package's own format. Raises what the package raises, and Unusable."""
    name = step.removeprefix(FORMAT)
    write = _load(FORMATS_GROUP, name, TAKEN_FORMATS)
    with replacing(format_path(Path(request.folder), name)) as file:
        write(Report(request, messages), file)


def format_path(folder: Path, name: str) -> Path:
    """Where an analysis has its report in a format."""
    return folder / "reports" / f"report.{name}"


def _load(group: str, name: str, taken: set[str]) -> Callable[..., Any]:
    point = _points(group).get(name)
    if point is None:
        raise Unusable("it is not installed any more")
    fault = _fault(name, taken)
    if fault is not None:
        raise Unusable(fault)
    loaded = point.load()
    if not callable(loaded):
        raise Unusable(f"{point.value} is no function")
    return loaded  # type: ignore[no-any-return]  # what it gives is checked where it is used


def _fault(name: str, taken: set[str]) -> str | None:
    if not _NAME.fullmatch(name):
        return f"its name is {name!r:.60}; allowed: small letters, digits and _"
    return f"the name {name} is taken by the server itself" if name in taken else None


def _points(group: str) -> dict[str, EntryPoint]:
    """By name. Of two the first by its value counts, whatever the order of a directory."""
    # only here: a worker without a package's own step does not wait for it
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda p: (p.name, p.value)):
        found.setdefault(point.name, point)
    return found
