"""Following what happens. The store keeps the events; this tells its followers when to look.

Nothing is kept here for a follower: each reads from the store at its own speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from cuckoo_api.store import Event, Store

GAP = "gap"
"""The kind of an event that stands for those which were not kept."""


class Feed:
    """The events of one store, for any number of followers.

    ``ring`` tells other processes that there are events of this one's making.
    """

    def __init__(self, store: Store, *, ring: Callable[[], None] = lambda: None) -> None:
        self._store = store.events
        self._ring = ring
        self.also: Callable[[], None] = lambda: None
        """Called with each :meth:`wake`."""
        store.database.on_event = self._happened
        self._news = asyncio.Event()
        self._closed = False

    def _happened(self) -> None:
        self.wake()
        self._ring()

    def wake(self) -> None:
        """There are events, or there may be."""
        self._news.set()
        self._news = asyncio.Event()
        self.also()

    def close(self) -> None:
        """End every follower, now and from now on."""
        self._closed = True
        self.wake()

    async def newest(self) -> int:
        """The id of what happened last."""
        return await self._store.newest()

    async def follow(self, last: int, *, pause: float) -> AsyncIterator[list[Event]]:
        """The events after this id; an empty list after ``pause`` s without any.

        Where events between are no longer there, a ``gap`` says so. Ends with :meth:`close`.
        """
        newest = await self._store.newest()
        if last > newest:  # seen on a database that was another one
            yield [_gap(last, newest)]
            last = newest
        while not self._closed:
            news = self._news
            events = await self._store.after(last)
            if events and events[0].id > last + 1:
                yield [_gap(last, events[0].id - 1)]
            if events:
                last = events[-1].id
                yield events
                continue
            try:
                async with asyncio.timeout(pause):
                    await news.wait()
            except TimeoutError:
                yield []


def _gap(after: int, last: int) -> Event:
    data = msgspec.json.encode({"after": after, "last": last}).decode()
    return Event(id=last, kind=GAP, data=data)
