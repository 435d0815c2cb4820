"""Makes a report: starts the worker, watches it, and goes on without the step that ended it."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Task
from cuckoo_api.reporting.child import Worker
from cuckoo_api.reporting.extension import FORMAT, extensions, format_path
from cuckoo_api.reporting.job import MAX_MESSAGE, MAX_MESSAGES, Job, Reply, Request
from cuckoo_api.reporting.sections import HTML, REPORT, SIGNATURES
from cuckoo_api.settings import ProcessingSection

log = structlog.get_logger()

WORKER = (sys.executable, "-I", "-m", "cuckoo_api.reporting.worker")
_PREFIX = ".sections-"
BEHAVIOR = "behavior"
LARGE = 2 << 20
"""Bytes of logs, and of all else, whose reading takes longer than another worker to start."""


class ProcessingFailed(CuckooError):
    """No report could be written; the text says why."""

    code = "processing_failed"


class ReportingFailed(CuckooError):
    """The results were processed, and the report of it could not be written; the text says why."""

    code = "reporting_failed"


@dataclass(slots=True)
class _Progress:
    """What is left to do, and what was said on the way."""

    steps: list[str]
    done: int = 0
    """How many steps came to their own end, whatever they had to say."""
    errors: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def took(self, reply: Reply) -> None:
        self.steps.remove(reply.step)
        self.done += 1
        errors = [error[:MAX_MESSAGE] for error in reply.errors[:MAX_MESSAGES]]
        self.errors += errors
        self.messages += errors + [note[:MAX_MESSAGE] for note in reply.notes[:MAX_MESSAGES]]

    def join(self, aside: _Progress, steps: list[str]) -> None:
        """Go on with these steps, after what was done here and aside."""
        self.steps = steps
        self.done += aside.done
        self.errors = aside.errors + self.errors
        self.messages = aside.messages + self.messages

    def lost(self, reason: str) -> None:
        self.done -= 1
        self.took(Reply(step=self.steps[0], errors=[f"{self.steps[0]}: {reason}"]))


async def make_report(
    folder: Path,
    task: Task,
    machine: Machine | None,
    limits: ProcessingSection,
    cwd: Path,
    *,
    html: bool = True,
    worker: Sequence[str] = WORKER,
) -> list[str]:
    """Make ``reports/report.json`` of an analysis folder; an earlier one is replaced at the end.

    With ``html``, ``report.html`` as well; without it, or when it fails, there is none.

    All parsing happens in a worker process with limits of its own. ``cwd`` is where the user's own
    rules and signatures lie. What a step failed on, also by ending or outstaying its process, is
    returned, and stands in the report's ``debug.errors``.
    Raises ReportingFailed when no report could be written, and ProcessingFailed when it did not
    even come to that.
    """
    sections = await asyncio.to_thread(_prepare, folder)
    own = await asyncio.to_thread(extensions)

    async def work(progress: _Progress, who: Worker) -> None:
        while progress.steps:
            request = Request(
                folder=str(folder.absolute()),
                sections=str(sections),
                job=Job.of(task, machine),
                steps=list(progress.steps),
                own_parts=list(own.keys),
                messages=list(progress.messages),
                cwd=str(cwd.absolute()),
                parent=os.getpid(),
                size_limit=limits.analysis_size_limit,
                seconds=limits.worker_timeout,
                memory=limits.worker_memory,
                cpu=limits.worker_timeout * len(own.steps),
            )
            reason = await _run(who, request, limits.worker_timeout, progress)
            if reason is not None:
                await who.close()
                log.warning(
                    "report.step_lost", task_id=task.id, step=progress.steps[0], reason=reason
                )
                progress.lost(reason)

    first, second = Worker(worker), Worker(worker)
    try:
        steps = [step for step in own.steps if html or step != HTML]
        progress = _Progress(steps)
        if await asyncio.to_thread(_is_large, folder):
            at = steps.index(SIGNATURES)
            progress = _Progress([step for step in steps[:at] if step != BEHAVIOR])
            aside = _Progress([BEHAVIOR])
            async with asyncio.TaskGroup() as group:
                group.create_task(work(progress, first))
                group.create_task(work(aside, second))
            await second.close()
            progress.join(aside, steps[at:])
        await work(progress, first)
    finally:
        await first.close()
        await second.close()
        await asyncio.to_thread(_sweep, folder / "reports")
    if not html or any(error.startswith(f"{HTML}: ") for error in progress.errors):
        # one of an earlier report would tell of another than report.json
        await asyncio.to_thread((folder / "reports" / "report.html").unlink, missing_ok=True)
    for name in own.files:
        if any(error.startswith(f"{FORMAT}{name}: ") for error in progress.errors):
            await asyncio.to_thread(format_path(folder, name).unlink, missing_ok=True)
    failed = [error for error in progress.errors if error.startswith(f"{REPORT}: ")]
    if failed:
        fault = ReportingFailed if progress.done else ProcessingFailed
        raise fault(f"No report was written. {failed[0]}")
    return progress.errors


def _is_large(folder: Path) -> bool:
    """Whether the logs take a worker so long that another one is worth its start, and all else."""
    sizes = {"logs": 0, "files": 0}
    for name in sizes:
        with suppress(OSError), os.scandir(folder / name) as entries:
            sizes[name] = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    with suppress(OSError):
        sizes["files"] += (folder / "dump.pcap").stat(follow_symlinks=False).st_size
    return min(sizes.values()) >= LARGE


async def _run(worker: Worker, request: Request, timeout: float, progress: _Progress) -> str | None:
    """Have the worker do all steps (None), or as many as it can (what ended it)."""
    try:
        answers = await worker.ask(msgspec.json.encode(request))
        while progress.steps:
            async with asyncio.timeout(timeout):
                line = await answers.readline()
                if not line:
                    return await worker.ending()
            reply = msgspec.json.decode(line, type=Reply)
            if reply.step != progress.steps[0]:
                return f"the worker answered for {reply.step[:40]!r}"
            progress.took(reply)
    except TimeoutError:
        return f"it took longer than {timeout:g} s"
    except (ValueError, msgspec.MsgspecError):
        return "the worker's answer was not understood"
    return None


def _prepare(folder: Path) -> Path:
    """A fresh private folder for the parts; what a killed server left goes."""
    reports = folder / "reports"
    try:
        reports.mkdir(mode=0o750, exist_ok=True)
        if not stat.S_ISDIR(reports.lstat().st_mode):
            raise ProcessingFailed("No report was written: the folder reports is no folder")
        # the worker may write into the two, and make none beside them
        with suppress(FileExistsError):
            (folder / "network").mkdir(mode=0o750)
        _sweep(reports)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=reports.absolute()))
    except OSError as exc:
        raise ProcessingFailed(
            f"No report was written: {exc.strerror or exc}", log=str(exc)
        ) from exc


def _sweep(reports: Path) -> None:
    """Remove the parts, and what a worker that was killed left half written."""
    for leftover in (*reports.glob(f"{_PREFIX}*"), *reports.glob(".report.*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
