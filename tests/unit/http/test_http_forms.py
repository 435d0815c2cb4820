"""Bodies that are no proper form, too large, or never end: refused in JSON, and nothing stays."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator

import pytest
from httpkit import BOUNDARY, FORM, HELLO, NewSite, Site, form, part, post, until

from cuckoo_api.artefacts.upload import BLOCK
from cuckoo_api.http.forms import MAX_FIELD_BYTES, MAX_FIELDS, MAX_FILES

pytestmark = pytest.mark.slow

FILE = "/tasks/create/file"
URL = "/tasks/create/url"
GOOD = part("file", b"hello", filename="h.txt")
HEAD = "Content-Disposition: form-data; "
URLENCODED = "application/x-www-form-urlencoded"

MALFORMED = {
    "nothing": b"",
    "no boundary line": b"hello",
    "another boundary": form(GOOD).replace(BOUNDARY.encode(), b"other"),
    "cut in the boundary": form(GOOD)[:10],
    "cut in the headers": form(GOOD)[:60],
    "cut in the content": form(GOOD).removesuffix(form())[:-4],
    "cut before the end": form(GOOD).removesuffix(b"--\r\n"),
    "a part without headers": form(b"hello"),
    "a part without a name": form(f"{HEAD}filename=x\r\n\r\nhello".encode()),
    "an empty name": form(part("", b"hello", filename="x")),
    "a header without a colon": form(b"nonsense\r\n\r\nhello"),
    "a header with a NUL": form(part("file", b"hello", filename="a\0b")),
    "a huge header": form(part("file", b"hello", filename="x" * 100_000)),
    "ten thousand headers": form(part("file", b"hello", filename="x", headers="A: b\r\n" * 10_000)),
    "ten thousand fields": form(*[part(f"f{n}", b"") for n in range(10_000)]),
    "a field over the limit": form(part("custom", b"x" * (MAX_FIELD_BYTES + 1))),
    "names over the limit": form(*[part("n" * 5000, b"") for _ in range(300)]),
    "nested": form(f"{HEAD}name=file\r\nContent-Type: {FORM}x\r\n\r\nhello".encode()),
    "no such transfer encoding": form(
        part("file", b"hello", filename="x", headers="Content-Transfer-Encoding: uuencode\r\n")
    ),
    "base64 that is none": form(
        part("file", b"h\xffe!!", filename="x", headers="Content-Transfer-Encoding: base64\r\n")
    ),
    "a field that is no UTF-8": form(part("custom", b"\xff"), GOOD),
    "a field in no charset": form(
        part("custom", b"x", headers="Content-Type: text/plain; charset=rot13\r\n"), GOOD
    ),
    "too many files": form(*[GOOD] * (MAX_FILES + 1)),
}


@pytest.fixture
async def quiet(site: Site) -> AsyncIterator[Site]:
    """A server that must have kept nothing in the end."""
    yield site
    assert await site.ids() == []
    assert site.kept() == set()
    assert site.wakes == []


async def test_no_malformed_form_is_more_than_a_bad_request(quiet: Site) -> None:
    for name, body in MALFORMED.items():
        reply = await quiet.client.raw(post(FILE, body, f"Content-Type: {FORM}"))
        assert 400 <= reply.status < 500, name
        assert "Traceback" not in reply.message, name


async def test_every_cut_of_a_form_is_a_bad_request(quiet: Site) -> None:
    whole = form(part("priority", b"2"), GOOD)
    for end in range(len(whole) - len("--\r\n")):
        reply = await quiet.client.ask(
            "POST", FILE, data=whole[:end], headers={"Content-Type": FORM}
        )
        assert reply.status == 400, whole[:end]
        assert reply.message


async def test_content_types_that_are_no_form(quiet: Site) -> None:
    for kind in [
        "application/json",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="é"',
        "multipart/mixed; boundary=x",
        "; ; ;",
        f"{URLENCODED}; charset=utf-16",
        f"{URLENCODED}; charset=nosuch",
    ]:
        reply = await quiet.client.raw(post(FILE, form(GOOD), f"Content-Type: {kind}"))
        assert reply.status == 400, kind
        assert reply.message


async def test_urlencoded_bodies_that_are_none(quiet: Site) -> None:
    for body, status in [
        (b"url=%ff", 400),
        (b"url=\xff", 400),
        (b"&".join([b"a=b"] * (MAX_FIELDS + 1)), 400),
        (b"url=" + b"x" * MAX_FIELD_BYTES, 413),
    ]:
        reply = await quiet.client.raw(post(URL, body, f"Content-Type: {URLENCODED}"))
        assert reply.status == status
        assert reply.message


async def test_bodies_that_break_the_protocol(quiet: Site) -> None:
    chunked = f"POST {FILE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n"
    for headers, body in [
        ("Transfer-Encoding: chunked\r\n", b"zz\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", b"ffffffffffffffffffff\r\nhello"),
        ("Transfer-Encoding: nosuch\r\n", b"hello"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"hello"),
        ("Content-Length: -5\r\n", b"hello"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
        ("Content-Length: 5\r\nContent-Encoding: gzip\r\n", b"hello"),
    ]:
        reply = await quiet.client.raw((chunked + headers + "\r\n").encode() + body)
        assert reply.status == 400, headers
        assert reply.message


async def test_a_form_of_the_largest_size_is_taken(site: Site) -> None:
    fields = [part(f"f{n}", b"x" * 1000) for n in range(MAX_FIELDS - 1)]
    assert (await site.client.post_form(FILE, *fields, GOOD)).status == 200
    assert (await site.client.upload(*[b"hello"] * MAX_FILES)).status == 200


async def test_transfer_encodings_and_charsets_that_are_known(site: Site) -> None:
    encoded = part(
        "file", b"aGVsbG8=", filename="x", headers="Content-Transfer-Encoding: base64\r\n"
    )
    owner = part("owner", b"\xe9", headers="Content-Type: text/plain; charset=latin-1\r\n")
    assert (await site.client.post_form(FILE, owner, encoded)).status == 200
    task = await site.task(1)
    assert (task["owner"], task["sample"]["sha256"]) == ("é", HELLO)


async def test_a_length_among_a_part_s_headers_must_be_the_part_s(site: Site) -> None:
    for length in (-1, 0, 3, 99999, "x"):
        file = part("file", b"hello", filename="x", headers=f"Content-Length: {length}\r\n")
        assert (await site.client.post_form(FILE, file)).status == 400, length
    assert site.kept() == set()
    file = part("file", b"hello", filename="x", headers="Content-Length: 5\r\n")
    assert (await site.client.post_form(FILE, file)).status == 200
    assert (await site.task(1))["sample"]["sha256"] == HELLO


async def test_text_around_the_parts_is_no_part(site: Site) -> None:
    body = b"preamble\r\n" + form(GOOD) + b"epilogue"
    reply = await site.client.ask("POST", FILE, data=body, headers={"Content-Type": FORM})
    assert reply.json == {"task_id": 1}


async def test_an_upload_at_the_limit_is_taken_and_one_over_it_leaves_nothing(
    new_site: NewSite,
) -> None:
    site = await new_site(max_upload_size=2 * BLOCK)
    for content in [b"x" * (2 * BLOCK + 1), b"x" * (20 * BLOCK)]:
        reply = await site.client.raw(
            post(FILE, form(GOOD, part("file", content, filename="x")), f"Content-Type: {FORM}")
        )
        assert reply.status == 413
        assert f"{2 * BLOCK} bytes" in reply.message
    assert await site.ids() == []
    assert site.kept() == set()
    assert (await site.client.upload(b"x" * (2 * BLOCK))).status == 200
    assert (await site.task(1))["sample"]["file_size"] == 2 * BLOCK


async def test_a_client_that_hangs_up_leaves_nothing(site: Site) -> None:
    body = form(GOOD, part("file", b"x" * (2 * BLOCK), filename="x"))
    request = post(FILE, body[:-100], f"Content-Type: {FORM}", length=len(body))
    _, writer = await site.client.connect()
    writer.write(request)
    await until(lambda: any(name.startswith("binaries/.incoming-") for name in site.kept()))
    writer.transport.abort()
    await until(lambda: not site.kept())
    assert await site.ids() == []
    assert site.wakes == []


async def test_a_large_upload_and_many_small_ones_need_little_memory(site: Site) -> None:
    await site.client.upload(b"hello")  # once for what is made at a first use
    for contents in [[b"x" * (32 * BLOCK)], [b"x" * (BLOCK - 1)] * 12]:
        body = form(*[part("file", content, filename="x") for content in contents])
        request = post(FILE, body, f"Content-Type: {FORM}")
        tracemalloc.start()
        try:
            reply = await site.client.raw(request)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert reply.status == 200
        assert peak < 5 << 18  # and the client is in this process too
