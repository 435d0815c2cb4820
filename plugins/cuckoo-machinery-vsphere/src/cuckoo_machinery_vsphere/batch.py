"""Questions of many callers, asked of the server together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Batch(Generic[T]):
    """Asks for everything that was wanted while the question before was under way, in one go.

    So an answer is never older than the caller's question, and a thousand questions at once cost
    what one costs.
    """

    def __init__(self, ask: Callable[[list[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._ask = ask
        self._waiting: dict[str, asyncio.Future[T | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: str) -> T | None:
        """The answer for this key; None where the server has none."""
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._serve())
        return await asyncio.shield(future)

    async def _serve(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, {}
                try:
                    answers = await self._ask([*batch])
                except BaseException as exc:
                    self._fail(batch, exc)
                    if not isinstance(exc, Exception):  # cancelled: so are those who came since
                        self._fail(self._waiting, exc)
                        raise
                else:
                    for key, future in batch.items():
                        future.set_result(answers.get(key))
        finally:
            self._asking = None

    @staticmethod
    def _fail(batch: dict[str, asyncio.Future[T | None]], error: BaseException) -> None:
        for future in batch.values():
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # nobody may be left to hear it
        batch.clear()

    def close(self) -> None:
        """Ask no more. Who waits is cancelled."""
        if self._asking is not None:
            self._asking.cancel()
