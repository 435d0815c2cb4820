"""A few threads of the plugin's own for libvirt's calls, which block."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """At most ``size`` threads, started when needed.

    They are daemons, unlike those of concurrent.futures: a hypervisor that never answers must not
    keep the server from ending.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._count = 0
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Have a function called, in turn. Cancelled before its turn, it is not called."""
        future: Future[T] = Future()
        self._jobs.put((future, function))
        if self._count < self._size:
            self._count += 1
            name = f"{self._name}-{self._count}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let each thread end, once it has done what was submitted."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as exc:  # noqa: BLE001 - it is the caller's
                    future.set_exception(exc)
            del job, future, function  # they hold libvirt's objects


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """Have the event loop call a function soon, from another thread; not if it is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


async def ended(future: Future[Any], seconds: float) -> bool:
    """Wait until what was submitted has ended, well or not; whether it has within ``seconds``."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: tell(loop, over.set))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
    return future.done()
