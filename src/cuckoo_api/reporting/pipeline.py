"""The steps of a report, one after the other, each failing alone. Runs in the worker."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cuckoo_api.reporting.bounds import Notes, clip
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.extension import FORMAT, PART, make_part, write_format
from cuckoo_api.reporting.job import MAX_MESSAGE, Job, Reply, Request
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.reporters.jsonreport import write_json_report
from cuckoo_api.reporting.sections import HTML, PROCESSORS, REPORT, SIGNATURES, YARA
from cuckoo_api.reporting.yara.step import add_matches

Processor = Callable[[Evidence, Job, Notes], Any]
PAGE = "cuckoo_api.reporting.reporters.htmlreport"


def run_pipeline(request: Request, processors: Mapping[str, str] = PROCESSORS) -> Iterator[Reply]:
    """Do the request's steps; one reply after each. Never raises for what a step ran into."""
    evidence = Evidence(Path(request.folder), request.size_limit)
    parts = Parts(request.sections)
    messages = list(request.messages)
    for step in request.steps:
        notes = Notes()
        errors: list[str] = []
        try:
            if step == REPORT:
                write_json_report(request, messages)
            elif step == YARA:
                add_matches(evidence, parts, Path(request.cwd), request.seconds, notes)
            elif step == HTML:
                # like a processor: a library that cannot be loaded costs the page only
                importlib.import_module(PAGE).write_html_report(request, messages)
            elif step == SIGNATURES:
                # only here: all signatures are loaded, which the worker for the logs needs not
                from cuckoo_api.reporting.signatures.step import judge

                judge(request, parts, notes)
            elif step.startswith(PART):
                make_part(step, evidence, request.job, parts, notes)
            elif step.startswith(FORMAT):
                write_format(step, request, messages)
            else:
                run: Processor = importlib.import_module(processors[step]).run
                parts.keep(step, run(evidence, request.job, notes))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a step that fails must not cost the report
            errors.append(clip(f"{step}: {type(exc).__name__}: {exc}", MAX_MESSAGE))
        messages += errors + notes.lines
        yield Reply(step=step, errors=errors, notes=notes.lines)
