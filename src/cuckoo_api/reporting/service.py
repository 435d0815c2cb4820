"""Makes a report: starts the worker, watches it, and goes on without the step that ended it."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import Task
from cuckoo_api.reporting.child import ENVIRONMENT, end, ending, tail
from cuckoo_api.reporting.extension import FORMAT, extensions, format_path
from cuckoo_api.reporting.job import MAX_MESSAGE, MAX_MESSAGES, Job, Reply, Request
from cuckoo_api.reporting.sections import HTML, REPORT, YARA
from cuckoo_api.settings import ProcessingSection

log = structlog.get_logger()

WORKER = (sys.executable, "-I", "-m", "cuckoo_api.reporting.worker")
MAX_REPLY = 1 << 20
_PREFIX = ".sections-"
NETWORK = "network"
CAPTURE = "dump.pcap"
LARGE = 4 << 20
"""Bytes of a capture that is read beside all else, by a worker of its own."""


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

    async def work(progress: _Progress) -> None:
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
                cpu=limits.worker_timeout * len(progress.steps),
            )
            reason = await _run(worker, request, limits.worker_timeout, progress)
            if reason is not None:
                log.warning(
                    "report.step_lost", task_id=task.id, step=progress.steps[0], reason=reason
                )
                progress.lost(reason)

    try:
        progress = _Progress([step for step in own.steps if html or step != HTML])
        if await asyncio.to_thread(_is_large, folder):
            progress = await _side_by_side(progress, work)
        await work(progress)
    finally:
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


async def _side_by_side(
    progress: _Progress, work: Callable[[_Progress], Coroutine[Any, Any, None]]
) -> _Progress:
    """Make the parts with two workers at once; what is left to do then."""
    at = progress.steps.index(YARA)
    aside = _Progress([NETWORK])
    early = _Progress([step for step in progress.steps[:at] if step != NETWORK])
    async with asyncio.TaskGroup() as group:
        group.create_task(work(early))
        group.create_task(work(aside))
    return _Progress(
        progress.steps[at:],
        done=early.done + aside.done,
        errors=early.errors + aside.errors,
        messages=early.messages + aside.messages,
    )


def _is_large(folder: Path) -> bool:
    """Whether reading the capture takes longer than starting another worker."""
    try:
        return (folder / CAPTURE).stat(follow_symlinks=False).st_size >= LARGE
    except OSError:
        return False


async def _run(
    worker: Sequence[str], request: Request, timeout: float, progress: _Progress
) -> str | None:
    """Run the worker until all steps are done (None) or it is gone (the reason)."""
    process = await asyncio.create_subprocess_exec(
        *worker,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_REPLY,
        start_new_session=True,
        cwd="/",
        env=ENVIRONMENT,
    )
    stdin = cast("asyncio.StreamWriter", process.stdin)
    stdout = cast("asyncio.StreamReader", process.stdout)
    complaints = asyncio.create_task(tail(cast("asyncio.StreamReader", process.stderr)))
    try:
        with suppress(ConnectionError):  # it died at once; its end says why
            stdin.write(msgspec.json.encode(request))
            await stdin.drain()
        stdin.close()
        while progress.steps:
            async with asyncio.timeout(timeout):
                line = await stdout.readline()
            if not line:
                break
            reply = msgspec.json.decode(line, type=Reply)
            if reply.step != progress.steps[0]:
                return f"the worker answered for {reply.step[:40]!r}"
            progress.took(reply)
        if not progress.steps:
            return None
        return ending(await process.wait(), await complaints)
    except TimeoutError:
        return f"it took longer than {timeout:g} s"
    except (ValueError, msgspec.MsgspecError):
        return "the worker's answer was not understood"
    finally:
        complaints.cancel()
        await end(process)


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
