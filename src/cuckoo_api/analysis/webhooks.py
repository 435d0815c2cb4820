"""Telling others that a task has come to its end.

What is to be told stands in the store until it was told, or given up: a restart loses nothing.
A receiver may be told twice, by the same ``id``, when its answer got lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable

import aiohttp
import msgspec
import structlog
from aiohttp.abc import AbstractResolver

from cuckoo_api.analysis.addresses import public_socket
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.task import Task
from cuckoo_api.settings import WebhooksSection
from cuckoo_api.store import Delivery, Store

log = structlog.get_logger()

PARALLEL = 8
SHARE = 2
"""Of these, to one receiver: who is slow, or does not answer, holds up nobody else."""
FIRST_PAUSE = 10
"""Seconds after the first failure; each further one lasts three times as long."""
LAST_PAUSE = 3600
STORE_PAUSE = 30.0
"""Seconds after which a store that failed is asked again."""

_encode = msgspec.json.Encoder().encode


class Webhooks:
    """Sends what is due, a few at a time.

    ``in_hand`` says whether the scheduler is still at work on a task: what it leaves is whole only
    after that. Call :meth:`wake` when that, or the store, has changed.
    """

    def __init__(
        self,
        section: WebhooksSection,
        store: Store,
        *,
        in_hand: Callable[[int], bool] = lambda task_id: False,
        resolver: AbstractResolver | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._section = section
        self._store = store
        self._in_hand = in_hand
        self._resolver = resolver
        self._clock = clock
        self._wanted = asyncio.Event()
        self._sending: dict[asyncio.Task[None], Delivery] = {}
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take on the configured addresses, and begin to send."""
        await self._store.deliveries.configure(self._section.urls)
        self._session = self._new_session()
        self._loop = asyncio.create_task(self._serve(), name="webhooks")

    async def reconfigure(self, section: WebhooksSection) -> None:
        """Tell other receivers, or in another way, from now on. What is being sent is sent."""
        self._section = section
        await self._store.deliveries.configure(section.urls)
        old, self._session = self._session, self._new_session()
        if self._sending:
            await asyncio.wait(list(self._sending))
        if old is not None:
            await old.close()
        self.wake()

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=PARALLEL,
            force_close=True,
            # a name is resolved for each connection, and what it led to then is what is judged
            use_dns_cache=False,
            resolver=self._resolver,
            socket_factory=None if self._section.allow_private else public_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._section.timeout),
            headers={"User-Agent": "cuckoo-api"},
        )

    async def close(self) -> None:
        """Stop. What is under way is sent again after the next start."""
        tasks = [*self._sending, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._session is not None:
            await self._session.close()

    def wake(self) -> None:
        """There may be something to send."""
        self._wanted.set()

    # -- what is due ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            self._wanted.clear()
            try:
                pause = await self._look()
            except CuckooError as exc:
                log.warning("webhooks.not_read", reason=exc.log)
                pause = STORE_PAUSE
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def _look(self) -> float | None:
        """Begin to send what is due; the seconds until more is, None where only an event helps."""
        for delivery in await self._store.deliveries.first():
            pause = delivery.due - self._clock()
            if pause > 0:
                return pause
            if not self._may_be_sent(delivery):
                continue
            if len(self._sending) == PARALLEL:
                return None
            task = asyncio.create_task(self._see_to(delivery), name=f"webhook-{delivery.id}")
            self._sending[task] = delivery
            task.add_done_callback(self._ended)
        return None

    def _may_be_sent(self, delivery: Delivery) -> bool:
        sending = self._sending.values()
        return (
            all(delivery.id != other.id for other in sending)
            and sum(delivery.receiver == other.receiver for other in sending) < SHARE
            and not self._in_hand(delivery.task_id)
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("webhook.failed", exc_info=fault)
        self.wake()

    # -- one delivery ---------------------------------------------------------------------------

    async def _see_to(self, delivery: Delivery) -> None:
        task = await self._store.tasks.get(delivery.task_id)
        if task is None:  # deleted a moment ago
            return
        told = {"delivery": delivery.id, "task_id": task.id, "attempt": delivery.attempts + 1}
        trouble = await self._send(delivery, task)
        deliveries = self._store.deliveries
        if trouble is None:
            await deliveries.forget(delivery)
            log.info("webhook.sent", **told)
        elif delivery.attempts + 1 >= self._section.attempts:
            await deliveries.forget(delivery)
            log.error("webhook.given_up", **told, reason=trouble)
        else:
            pause = min(FIRST_PAUSE * 3**delivery.attempts, LAST_PAUSE)
            await deliveries.put_off(delivery, int(self._clock()) + pause)
            log.warning("webhook.put_off", **told, reason=trouble, seconds=pause)

    async def _send(self, delivery: Delivery, task: Task) -> str | None:
        """Why it failed, or None. Any answer but 2xx is a failure; no body is read."""
        assert self._session is not None  # noqa: S101 - it is open as long as anything is sent
        body = _encode({"id": delivery.id, "status": delivery.status, "task": task})
        headers = {"Content-Type": "application/json", "X-Cuckoo-Delivery": str(delivery.id)}
        if self._section.secret:
            headers["X-Cuckoo-Signature"] = signature(self._section.secret, body)
        try:
            async with self._session.post(
                delivery.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    return None
                return f"it answered {response.status}"
        except TimeoutError:
            return f"it took longer than {self._section.timeout} s"
        except aiohttp.ClientConnectorError as exc:
            return f"it cannot be reached: {exc.os_error}"
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            return f"{type(exc).__name__}: {exc}"


def signature(secret: str, body: bytes) -> str:
    """What proves to a receiver that the body is ours, and whole."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
