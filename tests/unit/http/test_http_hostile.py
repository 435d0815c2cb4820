"""Clients that mean harm: slow ones, greedy ones, bombs, and words that are more than words."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import tracemalloc
import zlib

import pytest
from httpkit import FORM, HELLO, NewSite, Reply, Site, form, get, part, post, read_reply, until

from cuckoo_api.http import protocol

pytestmark = pytest.mark.slow

FILE = "/tasks/create/file"
URL = "/tasks/create/url"
URLENCODED = "Content-Type: application/x-www-form-urlencoded"
MIB = 1 << 20
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that looks a hundred times a second at who keeps it waiting."""
    monkeypatch.setattr(protocol, "LOOK", 0.01)


@pytest.fixture
def impatient(watchful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And waits for a head no longer than this."""
    monkeypatch.setattr(protocol, "HEAD", 0.04)


async def hung_up(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes the connection."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


# -- slow -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_head_that_never_ends_is_not_waited_for(site: Site) -> None:
    reader, writer = await site.client.connect()

    async def trickle() -> None:
        while True:
            writer.write(b"X-A: b\r\n")  # never silent for long
            await asyncio.sleep(0.005)

    writer.write(HEAD)
    trickling = asyncio.create_task(trickle())
    assert await hung_up(reader) == b""
    trickling.cancel()
    writer.close()


@pytest.mark.usefixtures("impatient")
async def test_a_connection_without_a_word_is_closed(site: Site) -> None:
    reader, writer = await site.client.connect()
    assert await hung_up(reader) == b""
    writer.close()


async def test_a_later_head_has_the_time_of_an_idle_connection(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "KEEPALIVE", 0.3)
    site = await new_site()
    reader, writer = await site.client.connect()
    writer.write(HEAD + b"\r\n" + HEAD)
    assert (await read_reply(reader)).status == 200
    assert await hung_up(reader) == b""
    writer.close()


@pytest.mark.usefixtures("watchful")
async def test_a_body_that_stops_is_not_waited_for_and_nothing_of_it_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = form(part("file", b"x" * MIB, filename="x"))
    reader, writer = await site.client.connect()
    writer.write(post(FILE, body[:-100], f"Content-Type: {FORM}", length=len(body)))
    await until(lambda: site.kept())
    monkeypatch.setattr(protocol, "STALL", 0.0)
    assert await hung_up(reader) == b""
    await until(lambda: not site.kept())
    assert await site.ids() == []
    writer.close()


async def test_a_body_that_comes_slowly_is_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[protocol.Protocol] = []
    made = protocol.Protocol.connection_made

    def remembered(self: protocol.Protocol, transport: asyncio.BaseTransport) -> None:
        connections.append(self)
        made(self, transport)

    monkeypatch.setattr(protocol.Protocol, "connection_made", remembered)
    body = form(part("file", b"hello", filename="x"))
    reader, writer = await site.client.connect()
    writer.write(post(FILE, b"", f"Content-Type: {FORM}", length=len(body)))
    await until(lambda: connections and connections[0]._current_request)
    for start in range(0, len(body), 50):
        now = asyncio.get_running_loop().time()
        writer.write(body[start : start + 50])
        await until(lambda now=now: connections and connections[0]._heard > now)
        assert not connections[0].is_late(now + protocol.STALL)
        if start + 50 < len(body):
            assert connections[0].is_late(now + protocol.STALL + 5)
    assert (await read_reply(reader)).json == {"task_id": 1}
    assert not connections[0].is_late(now + 1000)  # that is for KEEPALIVE
    writer.close()


@pytest.mark.usefixtures("watchful")
async def test_an_answer_that_takes_long_is_no_fault_of_the_client(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL", 0.0)

    async def slow() -> dict[str, int]:
        await asyncio.sleep(0.05)
        return {}

    monkeypatch.setattr(site.store.tasks, "counts", slow, raising=False)
    reader, writer = await site.client.connect()
    writer.write(get("/cuckoo/status"))
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
    writer.close()


# -- many -----------------------------------------------------------------------------------------


async def test_idle_connections_give_way(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.resource, "getrlimit", lambda _: (20, 20))
    site = await new_site()
    held = [await site.client.connect() for _ in range(30)]
    assert (await site.client.get("/healthz")).status == 200
    assert await hung_up(held[0][0]) == b""  # the oldest
    last = held[-1]
    last[1].write(HEAD + b"\r\n")
    assert (await read_reply(last[0])).status == 200
    for _, writer in held:
        writer.close()


async def test_a_download_is_not_idle(new_site: NewSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.resource, "getrlimit", lambda _: (4, 4))
    site = await new_site()
    size = 32 * MIB  # more than sockets hold
    with site.put("dump.pcap").open("wb") as file:
        file.truncate(size)
    reader, writer = await site.client.connect()
    writer.write(get("/pcap/get/1"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    idle = [await site.client.connect() for _ in range(3)]
    assert await hung_up(idle[0][0]) == b""
    assert len(await reader.readexactly(size)) == size
    for _, other in [(reader, writer), *idle]:
        other.close()


async def test_where_all_connections_are_at_work_a_new_one_is_told_so(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.resource, "getrlimit", lambda _: (6, 6))
    site = await new_site()
    body = form(part("file", b"x" * MIB, filename="x"))
    held = [await site.client.connect() for _ in range(3)]
    for _, writer in held:
        writer.write(post(FILE, body[:-100], f"Content-Type: {FORM}", length=len(body)))
    await until(lambda: len(site.kept()) == 3)
    reader, writer = await site.client.connect()
    reply = await read_reply(reader)
    assert reply.status == 503
    assert reply.message == "The server has too many connections; try again later"
    assert reply.headers["Retry-After"] == "10"
    assert reply.headers["Server"] == "cuckoo-api"
    writer.close()
    for reader, writer in held:  # they are served to their end
        writer.write(body[-100:])
        assert (await read_reply(reader)).status == 200
        writer.close()


async def test_hundreds_of_requests_at_once_over_one_connection(site: Site) -> None:
    reader, writer = await site.client.connect()
    writer.write(get("/nosuch") * 400)
    async with asyncio.timeout(20):
        assert {(await read_reply(reader)).status for _ in range(400)} == {404}
    writer.close()


async def test_heads_that_are_too_much(site: Site) -> None:
    for headers in [
        b"A: b\r\n" * 10_000,
        b"".join(b"A%d: b\r\n" % n for n in range(10_000)),
        b"A" * 9000 + b": b\r\n",
        b"Cookie: " + b"a=b; " * 3000 + b"\r\n",
        b"A: b\r\n " + b"folded " * 2000 + b"\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Host: other\r\nHost: third\r\n\0\r\n",
        b"A: \0\r\n",
        b"A b: c\r\n",
    ]:
        reply = await site.client.raw(HEAD + headers + b"\r\n")
        assert reply.status == 400, headers[:40]
        assert reply.message.startswith("This is no valid HTTP request: ")
        assert len(reply.body) < 500


# -- bombs ----------------------------------------------------------------------------------------


def bomb(content: bytes, size: int) -> bytes:
    """The content in gzip, with so many bytes of nothing in its middle."""
    packer = zlib.compressobj(9, wbits=31)
    before, _, after = content.partition(b"BOMB")
    parts = [packer.compress(before)]
    parts += [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, packer.compress(after), packer.flush()])


async def peak(site: Site, request: bytes) -> tuple[Reply, int]:
    """The answer, and the most memory that was in use for it."""
    await site.client.upload(b"hello")  # once for what is made at a first use
    tracemalloc.start()
    try:
        reply = await site.client.raw(request)
        return reply, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        (FILE, f"Content-Type: {FORM}", form(part("file", b"BOMB", filename="x"))),
        (FILE, f"Content-Type: {FORM}", form(part("custom", b"BOMB"))),
        (URL, URLENCODED, b"url=http://x/&custom=BOMB"),
        (URL, URLENCODED, b"BOMB"),
    ],
)
async def test_a_bomb_does_not_go_off(
    new_site: NewSite, path: str, kind: str, content: bytes
) -> None:
    site = await new_site(max_upload_size=MIB)
    packed = bomb(content, 8 * MIB)
    assert len(packed) < 20_000  # one piece of what is received
    reply, memory = await peak(site, post(path, packed, kind, "Content-Encoding: gzip"))
    assert reply.status == 413
    assert memory < 3 * MIB
    assert site.kept() == {f"binaries/{HELLO}"}


async def test_a_compressed_form_is_one_too(site: Site) -> None:
    body = gzip.compress(form(part("file", b"hello", filename="h.txt")))
    request = post(FILE, body, f"Content-Type: {FORM}", "Content-Encoding: gzip")
    assert (await site.client.raw(request)).json == {"task_id": 1}
    assert site.kept() == {f"binaries/{HELLO}"}


async def test_what_is_not_compressed_as_it_says(site: Site) -> None:
    for encoding, body in itertools.product(
        ["gzip", "deflate", "gzip, gzip"], [b"hello", gzip.compress(b"a" * 100)[:-10], b""]
    ):
        for path, kind in [(FILE, f"Content-Type: {FORM}"), (URL, URLENCODED)]:
            reply = await site.client.raw(post(path, body, kind, f"Content-Encoding: {encoding}"))
            assert reply.status == 400, (path, encoding, body)
            assert reply.message
    assert site.kept() == set()


async def test_a_sample_that_is_compressed_is_kept_as_it_is(site: Site) -> None:
    packed = bomb(b"BOMB", MIB)
    parts = part("file", packed, filename="x.gz", headers="Content-Encoding: gzip\r\n")
    assert (await site.client.post_form(FILE, parts)).json == {"task_id": 1}
    assert (await site.task(1))["sample"]["file_size"] == len(packed)


# -- words ----------------------------------------------------------------------------------------

EVIL = [
    "../../../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "file:///etc/passwd",
    "a\r\nSet-Cookie: x=y",
    "a\nb",
    "$(id)",
    "`id`",
    "'; DROP TABLE tasks; --",
    "{{7*7}}",
    "%2e%2e%2f%00",
    "\x1b[2J",
    "\u202egnp.exe",
    "-rf",
]
FIELDS = ("package", "options", "machine", "platform", "tags", "custom", "owner", "clock")
FILTERS = ("owner", "target", "category", "tags", "machine", "status", "sample", "after_id")
KNOWN = {
    "server", "x-content-type-options", "x-frame-options", "cache-control", "pragma", "expires",
    "x-request-id", "content-type", "content-length", "date", "etag", "last-modified",
    "accept-ranges", "transfer-encoding", "connection",
}  # fmt: skip


def strange(reply: Reply) -> set[str]:
    """Headers that no answer of this server has."""
    return {name.lower() for name in reply.headers} - KNOWN


async def test_no_field_of_a_form_leads_to_a_file_or_a_fault(site: Site) -> None:
    outside = site.settings.cwd.parent
    before = {path for path in outside.rglob("*") if path.is_file()}
    for field, text in itertools.product(FIELDS, EVIL):
        values = {field: f"filename={text}" if field == "options" else text}
        reply = await site.client.upload(b"hello", name=text, **values)
        assert reply.status in (200, 400), (field, text)
        assert not strange(reply)
    for text in EVIL:
        reply = await site.client.post(URL, {"url": f"http://x/{text}", "custom": text})
        assert reply.status in (200, 400), text
    assert site.kept() == {f"binaries/{HELLO}"}
    new = {path for path in outside.rglob("*") if path.is_file()} - before
    assert {path.name for path in new if not path.name.startswith("cuckoo.db")} == {HELLO}


async def test_no_query_leads_to_a_file_or_a_fault(site: Site) -> None:
    site.put("reports/report.json", b'{"info": {}}')
    site.put("files/a", b"a")
    queries = [f"/tasks/list?{name}=" for name in FILTERS]
    queries += ["/tasks/report/1?elements=", "/tasks/report/1/dropped?tar="]
    for query in queries:
        for text in [*EVIL, "\0", "\ud800", "é", "x" * 5000]:
            quoted = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
            reply = await site.client.get(query + quoted)
            assert reply.status in (200, 400, 404), (query, text)
            assert b"root:" not in reply.body
            assert not strange(reply)


async def test_no_name_becomes_a_header_of_a_download(site: Site) -> None:
    head = "Content-Disposition: form-data; name=file; filename*=UTF-8''"
    site.put("shots/0001.jpg", b"shot")
    for name in EVIL:
        quoted = "".join(f"%{byte:02x}" for byte in name.encode())
        reply = await site.client.post_form(FILE, f"{head}{quoted}\r\n\r\nhello".encode())
        assert reply.status == 200, name
        site.put(f"files/{name.replace('/', '_')}", b"dropped")
    for path in [f"/files/get/{HELLO}", "/tasks/report/1/all", "/tasks/screenshots/1"]:
        reply = await site.client.get(path)
        assert reply.status == 200
        assert not strange(reply)


async def test_what_a_client_sends_is_in_no_header_of_the_answer(site: Site) -> None:
    for path in ["/x%0d%0aSet-Cookie:%20x=y", "/tasks/view/%0d%0aA:%20b", "/v1/files/get/%0aA:b"]:
        reply = await site.client.get(path)
        assert reply.status == 404
        assert not strange(reply)
    request = HEAD + b"X-Request-Id: a\rSet-Cookie: x=y\r\n\r\n"
    assert "Set-Cookie" not in (await site.client.raw(request)).headers
