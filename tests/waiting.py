"""Tests wait for what happens, not for time: these tell them of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Literal

PATIENCE = 30.0
"""Seconds after which a test gives up; nothing takes one, but a machine may have other work."""


class News:
    """Counts what happens."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def one_more(self) -> None:
        """Something happened."""
        self.count += 1
        self._more.set()

    async def after(self, seen: int) -> None:
        """Return once more than ``seen`` things have happened."""
        while self.count <= seen:
            self._more.clear()
            await self._more.wait()

    async def until(self, happened: Callable[[], Any]) -> Any:
        """What ``happened`` returns, or its coroutine does, once that is true."""
        async with asyncio.timeout(PATIENCE):
            while True:
                seen = self.count
                found = happened()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                await self.after(seen)


class Bell(asyncio.Event):
    """For the place of the event that a loop waits for between two looks."""

    def __init__(self) -> None:
        super().__init__()
        self._waited_for = False
        self._news = News()

    async def at_rest(self) -> None:
        """Return once the loop waits, and has nothing to do."""
        await self._news.until(lambda: self._waited_for and not self.is_set())

    async def wait(self) -> Literal[True]:
        """As any event's."""
        self._waited_for = True
        self._news.one_more()
        await super().wait()
        self._waited_for = False
        return True
