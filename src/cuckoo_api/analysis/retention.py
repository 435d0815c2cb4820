"""What is old enough to go: by ``[retention]`` while the server runs, or by ``cuckoo clean``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from cuckoo_api.analysis.deletion import delete_task, trim_task
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.errors import Conflict, CuckooError, NotFound
from cuckoo_api.model.task import DATE_FORMAT, FINAL, Status
from cuckoo_api.settings import RetentionSection
from cuckoo_api.store import Store

log = structlog.get_logger()

DAY = 86_400
PERIOD = 3600.0
"""Seconds between two looks: what is old gets older by the clock alone, and makes no event."""
CHUNK = 100
"""Tasks that are looked up at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which tasks, and how much of them."""

    seconds: int
    """Since they ended; of those that never ran, since they were submitted."""
    statuses: frozenset[Status] = FINAL
    larger_than: int = 0
    """Bytes of what would go."""
    keep_reports: bool = False
    """Remove the files only: the task, its sample and its report stay."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What went of one task, or would."""

    task_id: int
    size: int
    """Bytes in its folder."""


async def clean(
    store: Store, artefacts: Artefacts, rule: Rule, *, now: float, dry_run: bool = False
) -> AsyncIterator[Removed]:
    """Apply a rule, task by task, in constant memory; what was removed, as it goes.

    Each goes the way of a deletion by hand: samples that other tasks have stay, and what is broken
    off is whole or gone after the next start. Those in hand are left alone.
    """
    before = datetime.fromtimestamp(now - rule.seconds, UTC).strftime(DATE_FORMAT)
    last = 0
    while ids := await store.tasks.outdated(before, rule.statuses, after_id=last, limit=CHUNK):
        last = ids[-1]
        for task_id in ids:
            folder = artefacts.analysis(task_id)
            if rule.keep_reports and not await folder.can_be_trimmed():
                continue
            size = await folder.size(trimmed=rule.keep_reports)
            if size < rule.larger_than:
                continue
            if dry_run or await _remove(store, artefacts, task_id, keep_report=rule.keep_reports):
                yield Removed(task_id, size)


async def _remove(store: Store, artefacts: Artefacts, task_id: int, *, keep_report: bool) -> bool:
    if keep_report:
        return await trim_task(store, artefacts, task_id)
    try:
        await delete_task(store, artefacts, task_id)
    except (NotFound, Conflict):  # somebody was faster
        return False
    return True


class Retention:
    """Applies ``[retention]`` while the server runs: when it starts, and then every hour."""

    def __init__(
        self,
        section: RetentionSection,
        store: Store,
        artefacts: Artefacts,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._section = section
        self._store = store
        self._artefacts = artefacts
        self._clock = clock
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin, in the background."""
        self._loop = asyncio.create_task(self._serve(), name="retention")

    async def close(self) -> None:
        """Stop, in the middle of a task too."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})

    def reconfigure(self, section: RetentionSection) -> None:
        """Go by another section from now on."""
        self._section = section
        self._changed.set()

    async def _serve(self) -> None:
        while True:
            self._changed.clear()
            rules = list(_rules(self._section))
            for rule in rules:
                await self._apply(rule)
            try:
                async with asyncio.timeout(PERIOD if rules else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _apply(self, rule: Rule) -> None:
        count = size = 0
        try:
            async for gone in clean(self._store, self._artefacts, rule, now=self._clock()):
                log.debug("retention.task", task_id=gone.task_id, keep_report=rule.keep_reports)
                count, size = count + 1, size + gone.size
        except (CuckooError, OSError) as exc:  # the next look goes on
            reason = exc.log if isinstance(exc, CuckooError) else str(exc)
            log.warning("retention.failed", reason=reason)
        if count:
            log.info("retention.removed", tasks=count, bytes=size, keep_reports=rule.keep_reports)


def _rules(section: RetentionSection) -> Iterator[Rule]:
    if section.days:
        yield Rule(seconds=section.days * DAY)
    if section.report_only_days:
        yield Rule(seconds=section.report_only_days * DAY, keep_reports=True)
