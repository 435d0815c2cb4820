"""Who may ask; what every answer carries; what is said where there is nothing to say."""

from __future__ import annotations

import asyncio
import base64
import re

import pytest
from httpkit import NewSite, Site, part, post, read_reply
from structlog.testing import capture_logs

pytestmark = pytest.mark.slow

TOKEN = "s3kr3t-é"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
    "Pragma": "no-cache",
    "Expires": "0",
    "Server": "cuckoo-api",
}
LIST = "/tasks/list/1"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


async def test_the_token_opens_the_server(new_site: NewSite) -> None:
    site = await new_site(token=TOKEN)
    for header in [
        f"Bearer {TOKEN}",
        f"bearer {TOKEN}",
        f"BEARER  {TOKEN} ",
        basic(f"anyone:{TOKEN}"),
        basic(f":{TOKEN}").replace("Basic", "bAsIc"),
    ]:
        assert (await site.client.get(LIST, Authorization=header)).json == {"tasks": []}
    # whatever name it is asked by
    reply = await site.client.get(LIST, Authorization=header, Host="sandbox", Origin="http://x")
    assert reply.status == 200


async def test_anything_else_is_told_how_the_header_must_look(new_site: NewSite) -> None:
    site = await new_site(token=TOKEN)
    for header in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Token {TOKEN}",
        TOKEN,
        basic(TOKEN),
        basic(f"{TOKEN}:"),
        basic(f"{TOKEN}:wrong"),
        "Basic !!!",
        "Basic " + "A" * 5,
    ]:
        for path in [LIST, "/nosuch", "/exit", "/openapi.json", "/v1/files/get/x/"]:
            reply = await site.client.get(
                path, **({} if header is None else {"Authorization": header})
            )
            assert reply.status == 401, header
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert "'Authorization: Bearer <TOKEN>' header is required" in reply.message
            assert "api_token under [cuckoo] in conf/cuckoo.conf" in reply.message
            assert TOKEN not in reply.message
    assert (await site.client.get(LIST)).status == 401


async def test_an_upload_without_the_token_is_not_kept(new_site: NewSite) -> None:
    site = await new_site(token=TOKEN)
    assert (await site.client.upload(b"hello")).status == 401
    assert site.kept() == set()


async def test_a_monitor_needs_no_token(new_site: NewSite) -> None:
    site = await new_site(token=TOKEN)
    for path in ["/healthz", "/healthz/", "/readyz", "/v1/readyz", "/v1/healthz/"]:
        assert (await site.client.get(path, Host="monitor")).status == 200


async def test_without_a_token_only_this_machine_is_served(site: Site) -> None:
    port = site.client.port
    for headers in [
        {"Host": "localhost"},
        {"Host": f"127.0.0.1:{port}"},
        {"Host": "[::1]:8090"},
        {"Host": "127.9.9.9"},
        {"Origin": f"http://localhost:{port}"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "same-origin"},
    ]:
        assert (await site.client.get(LIST, **headers)).status == 200, headers
    for headers in [
        {"Host": "evil.example"},
        {"Host": f"evil.example:{port}"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "user@localhost"},
        {"Host": "localhost/x"},
        {"Host": "192.0.2.1"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost@evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ]:
        reply = await site.client.get(LIST, **headers)
        assert reply.status == 403, headers
        assert "set [cuckoo] api_token" in reply.message
    reply = await site.client.ask(
        "POST", "/tasks/create/url", data={"url": "x"}, headers={"Origin": "http://evil.example"}
    )
    assert reply.status == 403
    assert await site.ids() == []


async def test_every_answer_carries_the_fixed_headers(site: Site) -> None:
    site.put("reports/report.json", b"{}")
    ids = set()
    for reply in [
        await site.client.get(LIST),
        await site.client.get("/tasks/list"),
        await site.client.get("/tasks/report/1"),
        await site.client.ask("HEAD", "/tasks/report/1"),
        await site.client.get("/tasks/report/1", Range="bytes=0-0"),
        await site.client.get("/tasks/report/1", Range="bytes=99-"),
        await site.client.get("/tasks/report/2"),
        await site.client.get("/nosuch"),
        await site.client.ask("DELETE", LIST),
        await site.client.ask("OPTIONS", LIST),
        await site.client.get(LIST, Host="evil.example"),
        await site.client.post("/tasks/create/url"),
        await site.client.ask("GET", LIST, headers={"Expect": "nonsense"}),
        await site.client.raw(b"nonsense\r\n\r\n"),
    ]:
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS, reply
        assert not re.search(r"aiohttp|python", str(reply.headers), re.IGNORECASE)
        ids.add(reply.headers["X-Request-Id"])
    assert len(ids) == 14


async def test_a_proxy_s_request_id_is_kept_where_it_is_a_plain_one(site: Site) -> None:
    for given, kept in [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("é", False)]:
        reply = await site.client.get("/healthz", X_Request_Id=given)
        assert (reply.headers["X-Request-Id"] == given) is kept


async def test_every_path_is_there_bare_and_versioned_with_and_without_a_slash(site: Site) -> None:
    for path in ["/tasks/list", "/machines/list", "/cuckoo/status", "/healthz", "/openapi.json"]:
        for spelling in [path, f"{path}/", f"/v1{path}", f"/v1{path}/"]:
            assert (await site.client.get(spelling)).status == 200
        for spelling in [f"{path}//", f"/{path}", f"/v2{path}", f"/V1{path}", f"/v1/v1{path}"]:
            assert (await site.client.get(spelling)).status == 404
    for path in ["/tasks/create/url/", "/v1/tasks/create/url", "/v1/tasks/create/url/"]:
        assert (await site.client.post(path, {"url": "http://x/"})).status == 200


async def test_an_address_that_is_none(site: Site) -> None:
    for path in ["/", "/nosuch", "/tasks/list/abc", "/tasks/view/-1", "/tasks/view/0x1", "/v1"]:
        reply = await site.client.get(path)
        assert reply.status == 404
        assert reply.message == "There is nothing at this address; /openapi.json lists all"


async def test_a_method_that_is_not_allowed(site: Site) -> None:
    for method, path, allow in [
        ("GET", "/tasks/create/file", "OPTIONS, POST"),
        ("PUT", "/tasks/create/file", "OPTIONS, POST"),
        ("HEAD", "/tasks/create/url", "OPTIONS, POST"),
        ("DELETE", "/tasks/view/1", "GET, HEAD, OPTIONS"),
        ("POST", "/tasks/view/1", "GET, HEAD, OPTIONS"),
        ("HEAD", "/exit", "GET, OPTIONS"),  # it would stop the server
        ("PROPFIND", "/healthz", "GET, HEAD, OPTIONS"),
    ]:
        reply = await site.client.ask(method, path)
        assert (reply.status, reply.headers["Allow"]) == (405, allow)
        if method != "HEAD":
            assert reply.message == f"{method} is not allowed here; allowed: {allow}"
        options = await site.client.ask("OPTIONS", path)
        assert (options.status, options.headers["Allow"], options.body) == (200, allow, b"")


async def test_what_is_no_http_is_answered_in_json(site: Site) -> None:
    for request in [
        b"nonsense\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]:
        reply = await site.client.raw(request)
        assert 400 <= reply.status < 500, request[:40]
        assert "Traceback" not in reply.message


async def test_an_expectation_nobody_knows(site: Site) -> None:
    reply = await site.client.get("/healthz", Expect="nonsense")
    assert reply.status == 417
    assert reply.message


async def test_a_client_may_ask_whether_to_go_on(site: Site) -> None:
    body = b"url=http://example.com/"
    kind = "Content-Type: application/x-www-form-urlencoded"
    reader, writer = await site.client.connect()
    writer.write(post("/tasks/create/url", body, kind, "Expect: 100-continue")[: -len(body)])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await read_reply(reader)).json == {"task_id": 1}
    writer.close()


async def test_a_fault_of_the_server_shows_no_more_than_where_the_log_has_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ValueError("the secret of the store")

    monkeypatch.setattr(site.store.tasks, "counts", fail, raising=False)
    with capture_logs() as logs:
        reply = await site.client.get("/cuckoo/status")
    request_id = reply.headers["X-Request-Id"]
    assert reply.status == 500
    assert reply.message == f"Internal error; the server's log has it as {request_id}"
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert (line["event"], line["path"]) == ("request.failed", "/cuckoo/status")


async def test_a_connection_serves_many_requests_in_their_order(site: Site) -> None:
    reader, writer = await site.client.connect()
    paths = ["/healthz", "/nosuch", "/tasks/view/1", "/machines/list"]
    writer.write(
        b"".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths)
    )
    async with asyncio.timeout(5):
        statuses = [(await read_reply(reader)).status for _ in paths]
    assert statuses == [200, 404, 404, 200]
    writer.close()


async def test_a_refused_upload_is_answered_before_it_is_sent(new_site: NewSite) -> None:
    site = await new_site(token=TOKEN)
    whole = post("/tasks/create/file", part("file", b"x"), length=1 << 30)
    assert (await site.client.raw(whole)).status == 401
