"""Receivers are told of the ends of tasks: once it is true, signed, again when they fail."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from cuckoo_api.analysis.webhooks import FIRST_PAUSE, PARALLEL, SHARE, Webhooks
from cuckoo_api.model.task import NewTask
from cuckoo_api.settings import WebhooksSection
from cuckoo_api.store import Delivery, Store
from cuckoo_api.store.deliveries import CHUNK

pytestmark = pytest.mark.slow

SECRET = "s3cret"


@dataclass
class Receiver:
    """An HTTP server that takes what it is told."""

    port: int = 0
    answers: list[Any] = field(default_factory=list)
    """How it answers, one after the other; then 200."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.got]

    async def take(self, request: web.BaseRequest) -> web.StreamResponse:
        self.got.append((dict(request.headers), await request.read()))
        self.news.set()
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, int):
            return web.Response(status=answer)
        return await answer(request)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.got) < count:
                self.news.clear()
                await self.news.wait()


class Names(AbstractResolver):
    """A resolver that answers the same name with one address after the other."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses[min(self.asked, len(self.addresses) - 1)]
        self.asked += 1
        return [
            ResolveResult(
                hostname=host, host=part, port=port, family=socket.AF_INET, proto=6, flags=0
            )
            for part in address.split()
        ]

    async def close(self) -> None:
        pass


class Clock:
    """The time, which stands still."""

    def __init__(self) -> None:
        self.now = 4_000_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = web.ServerRunner(
        web.Server(receiver.take, handler_cancellation=True), shutdown_timeout=0.1
    )
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    receiver.port = server.addresses[0][1]
    yield receiver
    await server.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def other(receiver: Receiver) -> AsyncIterator[Receiver]:
    """Another receiver than the first."""
    async with receiving() as made:
        yield made


@pytest.fixture
async def store(tmp_path: Path, empty_database: Path) -> AsyncIterator[Store]:
    (tmp_path / "cuckoo.db").write_bytes(empty_database.read_bytes())
    store = await Store.open(f"sqlite:///{tmp_path}/cuckoo.db")
    yield store
    await store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Start = Callable[..., Awaitable[Webhooks]]


@pytest.fixture
async def start(store: Store, clock: Clock) -> AsyncIterator[Start]:
    """Webhooks that are open; settings by keyword."""
    async with AsyncExitStack() as stack:

        async def make(
            in_hand: Callable[[int], bool] = lambda task_id: False,
            resolver: AbstractResolver | None = None,
            **values: Any,
        ) -> Webhooks:
            section = WebhooksSection(**{"allow_private": True, "secret": SECRET} | values)
            webhooks = Webhooks(section, store, in_hand=in_hand, resolver=resolver, clock=clock)
            stack.push_async_callback(webhooks.close)
            store.database.on_event = webhooks.wake
            await webhooks.open()
            return webhooks

        yield make


async def ended(store: Store, callback: str = "") -> int:
    """A task that is cancelled: the shortest way to an end."""
    task = NewTask(category="url", target="http://e.example/", custom="mine", callback=callback)
    [task_id] = await store.tasks.submit([task])
    await store.tasks.cancel(task_id)
    return task_id


async def waiting(store: Store, until: Callable[[list[Delivery]], bool]) -> list[Delivery]:
    """What is still to be told, once that is so."""
    async with asyncio.timeout(5):
        while not until(found := await store.deliveries.first()):
            await asyncio.sleep(0)
    return found


async def reason(event: str) -> str:
    """Why, as the log will say at this event."""
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(5):
            while not (found := [line for line in logs if line["event"] == event]):
                await asyncio.sleep(0)
    text: str = found[0]["reason"]
    return text


async def test_a_task_s_end_is_told_and_signed(
    store: Store, receiver: Receiver, start: Start
) -> None:
    await start()
    task_id = await ended(store, receiver.url)
    await receiver.until(1)
    [(headers, body)] = receiver.got
    assert json.loads(body)["task"]["custom"] == "mine"
    assert (json.loads(body)["status"], json.loads(body)["task"]["id"]) == ("cancelled", task_id)
    assert set(json.loads(body)) == {"id", "status", "task"}
    expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["X-Cuckoo-Signature"] == f"sha256={expected}"
    assert headers["X-Cuckoo-Delivery"] == str(json.loads(body)["id"])
    assert headers["Content-Type"] == "application/json"
    await waiting(store, lambda left: left == [])


async def test_without_a_secret_nothing_is_signed(
    store: Store, receiver: Receiver, start: Start
) -> None:
    await start(secret="", urls=(receiver.url,))
    await ended(store)
    await receiver.until(1)
    assert "X-Cuckoo-Signature" not in receiver.got[0][0]


async def test_a_failure_is_tried_again_later_and_later(
    store: Store, receiver: Receiver, start: Start, clock: Clock
) -> None:
    receiver.answers = [500, 302, 404]
    webhooks = await start()
    await ended(store, receiver.url)
    for attempt, pause in ((1, FIRST_PAUSE), (2, 3 * FIRST_PAUSE), (3, 9 * FIRST_PAUSE)):
        await receiver.until(attempt)
        number = attempt
        [left] = await waiting(store, lambda left: left[0].attempts == number)  # noqa: B023 - used at once
        assert left.due == int(clock.now) + pause
        webhooks.wake()
        clock.now = left.due
        webhooks.wake()
    await receiver.until(4)
    await waiting(store, lambda left: left == [])
    assert len({body for _, body in receiver.got}) == 1  # the same, with the same id


async def test_a_receiver_that_never_takes_it_is_given_up(
    store: Store, receiver: Receiver, start: Start, clock: Clock
) -> None:
    receiver.answers = [500, 500, 500]
    webhooks = await start(attempts=2)
    await ended(store, receiver.url)
    await waiting(store, lambda left: left[0].attempts == 1)
    clock.now += FIRST_PAUSE
    webhooks.wake()
    assert await reason("webhook.given_up") == "it answered 500"
    assert await store.deliveries.first() == []
    assert len(receiver.got) == 2


async def test_what_was_not_told_is_told_after_a_restart(
    store: Store, receiver: Receiver, start: Start, clock: Clock
) -> None:
    receiver.answers = [503]
    first = await start()
    await ended(store, receiver.url)
    await waiting(store, lambda left: left[0].attempts == 1)
    await first.close()
    clock.now += FIRST_PAUSE
    await start()
    await receiver.until(2)
    await waiting(store, lambda left: left == [])


async def test_a_stop_breaks_off_what_is_under_way_and_keeps_it(
    store: Store, receiver: Receiver, start: Start
) -> None:
    async def never(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answers = [never]
    webhooks = await start()
    await ended(store, receiver.url)
    await receiver.until(1)
    async with asyncio.timeout(1):
        await webhooks.close()
    assert [d.attempts for d in await store.deliveries.first()] == [0]


async def test_nothing_is_told_while_the_task_is_still_in_hand(
    store: Store, receiver: Receiver, start: Start
) -> None:
    busy = True
    webhooks = await start(in_hand=lambda task_id: busy and task_id == 1)
    await ended(store, receiver.url)
    await ended(store, receiver.url)
    await receiver.until(1)
    await waiting(store, lambda left: len(left) == 1)
    assert [body["task"]["id"] for body in receiver.bodies] == [2]
    busy = False
    webhooks.wake()
    await receiver.until(2)


async def test_a_receiver_that_hangs_holds_up_no_other(
    store: Store, receiver: Receiver, other: Receiver, start: Start
) -> None:
    async def never(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answers = [never] * 1000
    count = CHUNK + 1  # more than are read at a time
    for number in range(count):
        # each at another address of its
        await ended(store, f"{receiver.url}/{number}")
    await start()
    await receiver.until(SHARE)
    for _ in range(PARALLEL):
        await ended(store, other.url)
    await other.until(PARALLEL)
    assert len(receiver.got) == SHARE


async def test_a_receiver_gets_all_in_turn(store: Store, receiver: Receiver, start: Start) -> None:
    for _ in range(3 * PARALLEL):
        await ended(store, receiver.url)
    await start()
    await receiver.until(3 * PARALLEL)
    await waiting(store, lambda left: left == [])


async def test_a_slow_receiver_is_a_failure(store: Store, receiver: Receiver, start: Start) -> None:
    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    receiver.answers = [slow]
    await ended(store, receiver.url)
    await start(timeout=0.05)
    assert await reason("webhook.put_off") == "it took longer than 0.05 s"


async def test_a_receiver_that_answers_without_end_is_done_with_its_first_line(
    store: Store, receiver: Receiver, start: Start
) -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with pytest.raises(ConnectionError):
            while True:
                await response.write(b"x" * 65536)
        return response

    receiver.answers = [endless]
    await start()
    await ended(store, receiver.url)
    await waiting(store, lambda left: left == [])


async def test_a_redirect_is_not_followed(store: Store, receiver: Receiver, start: Start) -> None:
    async def elsewhere(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"{receiver.url}/other"})

    receiver.answers = [elsewhere]
    await start()
    await ended(store, receiver.url)
    await waiting(store, lambda left: left[0].attempts == 1)
    assert len(receiver.got) == 1


# -- private addresses ----------------------------------------------------------------------------


async def test_a_private_address_is_not_called(
    store: Store, receiver: Receiver, start: Start
) -> None:
    await ended(store, receiver.url)
    await start(allow_private=False)
    assert "127.0.0.1 is not an address of the public internet" in await reason("webhook.put_off")
    assert receiver.got == []


async def test_a_name_that_leads_to_a_private_address_is_not_called(
    store: Store, receiver: Receiver, start: Start
) -> None:
    await ended(store, f"http://evil.example:{receiver.port}/")
    await start(allow_private=False, resolver=Names("127.0.0.1"))
    assert "127.0.0.1 is not an address of the public internet" in await reason("webhook.put_off")
    assert receiver.got == []


async def test_a_private_address_behind_a_public_one_is_not_called(
    store: Store, receiver: Receiver, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def connect(_loop: object, _sock: object, address: tuple[str, int]) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError("closed")

    monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", connect)
    await ended(store, f"http://evil.example:{receiver.port}/")
    await start(allow_private=False, resolver=Names("1.1.1.1 127.0.0.1"))
    assert "127.0.0.1 is not an address" in await reason("webhook.put_off")
    assert tried == ["1.1.1.1"]


async def test_a_name_that_changes_its_mind_is_judged_by_what_is_connected_to(
    store: Store, receiver: Receiver, start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is looked at first, private when it counts."""
    tried: list[str] = []

    async def connect(_loop: object, _sock: object, address: tuple[str, int]) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError("closed")

    monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", connect)
    names = Names("1.1.1.1", "127.0.0.1")
    await ended(store, f"http://evil.example:{receiver.port}/")
    webhooks = await start(allow_private=False, resolver=names)
    await waiting(store, lambda left: left[0].attempts == 1)
    assert (tried, names.asked) == (["1.1.1.1"], 1)  # the address that was judged, asked for once
    clock.now += FIRST_PAUSE
    webhooks.wake()
    await waiting(store, lambda left: left[0].attempts == 2)
    assert (tried, names.asked) == (["1.1.1.1"], 2)  # the second one was never connected to
    assert receiver.got == []
