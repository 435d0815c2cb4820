"""How long the core waits for a hypervisor, and how it stops waiting."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import structlog

from cuckoo_api.machinery import MachineryError, OperationTimedOut
from cuckoo_api.settings import TimeoutsSection

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that each call of a backend may take, as the machinery contract says them."""

    open: float = 30
    close: float = 10
    labels: float = 5
    state: float = 5
    inspect: float = 5
    start: float = 60
    """restore_and_start."""
    power_off: float = 10
    screenshot: float = 5
    order: float = 10
    """What only has to be ordered: reboot, start_capture, stop_capture."""
    dump: float = 600
    """dump_memory: gigabytes, to a disk that may be slow."""
    cancel: float = 1
    """For a call that was cancelled to end; after that it is left behind."""
    fresh: float = 1
    """How old a known state may be before the hypervisor is asked again."""
    away: float = 60
    """For a hypervisor to come back while a machine of its runs; its daemon may be restarted."""
    ask: float = 5
    """Between two questions after a running machine, where the backend reports no changes."""
    first_retry: float = 30
    last_retry: float = 600
    """Between attempts to mend a machine: from the first, doubled each time, to the last."""
    first_reopen: float = 1
    last_reopen: float = 60
    """Between attempts to reach a hypervisor, likewise."""

    @classmethod
    def of(cls, timeouts: TimeoutsSection) -> Self:
        """Those of the configuration."""
        return cls(start=timeouts.vm_state)


def backoff(first: float, last: float, failures: int) -> float:
    """Seconds to wait after so many failures in a row: ``first``, doubled each time to ``last``."""
    return min(last, first * 2.0 ** min(max(failures - 1, 0), 32))


async def bounded(
    call: Coroutine[Any, Any, T],
    seconds: float,
    what: str,
    *,
    cancel: float = 1,
    hide: Callable[[str], str] = str,
) -> T:
    """The result of a backend's call, or a MachineryError; within ``seconds`` and ``cancel`` more.

    A call that does not end when it is cancelled is left behind: one plugin that swallows a
    cancel must not stop the rest. Whatever else escapes a backend becomes a MachineryError.
    ``hide`` takes out of what is logged what must not be shown.
    """
    task = asyncio.create_task(call, name=what)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _give_up(task, cancel)
        raise
    if not task.done():
        await _give_up(task, cancel)
        raise OperationTimedOut(f"{what}: no answer within {seconds:g} s")
    try:
        return task.result()
    except MachineryError:
        raise
    except TimeoutError as exc:
        raise OperationTimedOut(f"{what}: timed out {exc}".rstrip()) from exc
    except (Exception, asyncio.CancelledError) as exc:
        raise bug(what, exc, hide) from exc


def bug(what: str, exc: BaseException, hide: Callable[[str], str]) -> MachineryError:
    """Log what no backend may raise; the error to raise in its place."""
    log.error("machinery.bug", call=what, exception=hide("".join(traceback.format_exception(exc))))
    return MachineryError(f"{what}: {type(exc).__name__}: {exc}")


async def _give_up(task: asyncio.Task[Any], seconds: float) -> None:
    task.add_done_callback(_look_away)
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        log.warning("machinery.deaf_to_cancel", call=task.get_name())


def _look_away(task: asyncio.Task[Any]) -> None:
    """Take the late result of a call that nobody waits for, lest asyncio reports it as lost."""
    if not task.cancelled() and task.exception() is not None:
        log.debug("machinery.late_failure", call=task.get_name(), reason=str(task.exception()))


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work``, which has its own deadlines, even when cancelled; then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("fleet.failed_while_cancelled", reason=str(error))
    raise cancelled
