"""``/events``: what happens, as it happens, and what happened meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from eventkit import Told, following
from httpkit import NewSite, Site, machine, until

from cuckoo_api.http import events
from cuckoo_api.http.keys import STREAMS
from cuckoo_api.model.task import Status
from cuckoo_api.server import app

pytestmark = pytest.mark.slow

URL = {"url": "http://example.com/"}


async def submit(site: Site) -> int:
    task_id: int = (await site.client.post("/tasks/create/url", URL)).json["task_id"]
    return task_id


async def test_a_change_is_told_as_it_happens(site: Site) -> None:
    async with following(site) as stream:
        assert stream.response.headers["Content-Type"] == "text/event-stream"
        task_id = await submit(site)
        await site.client.post(f"/tasks/cancel/{task_id}")
        new, cancelled = await stream.next(), await stream.next()
    task = await site.task(task_id)
    assert new == Told(
        1,
        "task",
        {"id": task_id, "status": "pending", "previous": None, "time": task["added_on"]},
    )
    assert (cancelled.id, cancelled.data["status"]) == (2, "cancelled")
    assert cancelled.data["previous"] == "pending"


async def test_machines_are_told_of_too(site: Site) -> None:
    await site.configure(machine("one"))
    async with following(site) as stream:
        await site.store.machines.set_quarantine("one", "no agent")
        told = await stream.next()
    assert told.kind == "machine"
    assert set(told.data) == {
        "id", "name", "status", "previous", "locked", "task_id", "quarantine", "time",
    }  # fmt: skip
    assert (told.data["name"], told.data["quarantine"]) == ("one", "no agent")


async def test_without_an_id_the_stream_begins_now(site: Site) -> None:
    await submit(site)
    async with following(site) as stream:
        task_id = await submit(site)
        assert (await stream.next()).data["id"] == task_id


@pytest.mark.parametrize("prefix", ["?last_event_id=", ""])
async def test_who_comes_back_gets_what_happened_meanwhile(site: Site, prefix: str) -> None:
    ids = [await submit(site) for _ in range(3)]
    query, headers = (f"{prefix}1", {}) if prefix else ("", {"Last_Event_ID": "1"})
    async with following(site, query, **headers) as stream:
        assert [(await stream.next()).data["id"] for _ in range(2)] == ids[1:]
        ids.append(await submit(site))
        assert (await stream.next()).data["id"] == ids[3]


async def test_the_header_counts_more_than_the_parameter(site: Site) -> None:
    ids = [await submit(site) for _ in range(2)]
    async with following(site, "?last_event_id=0", Last_Event_ID="1") as stream:
        assert (await stream.next()).data["id"] == ids[1]


async def test_more_than_one_page_is_replayed_whole(site: Site) -> None:
    await site.store.tasks.submit_all([])
    await asyncio.gather(*(submit(site) for _ in range(250)))
    async with following(site, "?last_event_id=0") as stream:
        assert [(await stream.next()).id for _ in range(250)] == list(range(1, 251))


async def test_what_was_not_kept_is_told_as_a_gap(site: Site) -> None:
    async def lose(transaction: object) -> None:
        transaction._connection.execute("DELETE FROM events WHERE id <= 3")  # type: ignore[attr-defined]

    for _ in range(4):
        await submit(site)
    await site.store.database.write(lose)  # type: ignore[arg-type]  # the test's own
    async with following(site, "?last_event_id=1") as stream:
        assert await stream.next() == Told(3, "gap", {"after": 1, "last": 3})
        assert (await stream.next()).id == 4


async def test_an_id_of_another_database_is_a_gap_up_to_now(site: Site) -> None:
    await submit(site)
    async with following(site, f"?last_event_id={(1 << 63) - 1}") as stream:
        assert await stream.next() == Told(1, "gap", {"after": (1 << 63) - 1, "last": 1})
        await submit(site)
        assert (await stream.next()).id == 2


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "0x1", str(1 << 63), "1" * 40])
async def test_an_id_that_is_none_is_refused(site: Site, text: str) -> None:
    for reply in (
        await site.client.get(f"/events?last_event_id={text}"),
        await site.client.get("/events", Last_Event_ID=text),
    ):
        assert reply.status == 400
        assert reply.message.startswith("Last-Event-ID: expected a whole number from 0")


async def test_old_clients_see_the_states_they_know(new_site: NewSite) -> None:
    site = await new_site(legacy_statuses=True)
    task_id = await submit(site)
    await site.client.post(f"/tasks/cancel/{task_id}")
    await site.store.tasks.reschedule(task_id)
    async with following(site, "?last_event_id=0") as stream:
        told = [(await stream.next()).data for _ in range(4)]
    assert [data["status"] for data in told] == ["pending", "reported", "pending", "recovered"]
    assert told[3]["previous"] == "reported"
    assert (await site.store.tasks.get(task_id)).status is Status.RECOVERED  # type: ignore[union-attr]


async def test_the_token_is_asked_for(new_site: NewSite) -> None:
    site = await new_site(token="secret")
    assert (await site.client.get("/events")).status == 401
    async with following(site, Authorization="Bearer secret"):
        pass


async def test_a_quiet_stream_is_kept_alive(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEPALIVE", 0.01)
    async with following(site) as stream:
        assert [await stream.block() for _ in range(3)] == [{}, {}, {}]


async def test_only_so_many_streams_are_open_at_once(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_STREAMS", 1)
    site = await new_site()
    async with following(site):
        reply = await site.client.get("/events")
        assert reply.status == 503
        assert "event streams are open already" in reply.message


async def test_a_stop_ends_the_streams_in_good_order(site: Site) -> None:
    async with following(site) as stream, following(site, "?last_event_id=0") as other:
        await site.app.shutdown()
        assert await stream.ended() == await other.ended() == b""
    async with following(site) as late:
        assert await late.ended() == b""


async def test_a_client_that_takes_nothing_is_dropped(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STALLED", 0.05)
    data = "x" * 300_000

    async def flood(transaction: object) -> None:
        transaction._connection.executemany(  # type: ignore[attr-defined]
            "INSERT INTO events (kind, data) VALUES ('task', ?)", [(data,)] * 120
        )

    await site.store.database.write(flood)  # type: ignore[arg-type]  # the test's own
    reader, writer = await site.client.connect()
    writer.write(b"GET /events?last_event_id=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    streams = site.app[STREAMS]
    await until(lambda: streams._value < events.MAX_STREAMS)
    await until(lambda: streams._value == events.MAX_STREAMS)
    # what the kernel has, and not what waited in the server
    assert len(await reader.read()) < len(data) * 100
    writer.close()
    await writer.wait_closed()


async def test_head_answers_without_following(site: Site) -> None:
    reply = await site.client.ask("HEAD", "/events")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Type"] == "text/event-stream"
