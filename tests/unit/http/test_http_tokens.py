"""Tokens with names: what each may do, how often, and that a change needs no restart."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from httpkit import FORM, NewSite, Reply, Site, form, part, post
from structlog.testing import capture_logs

from cuckoo_api.http import access
from cuckoo_api.http.openapi import document
from cuckoo_api.http.ratelimit import Bucket
from cuckoo_api.http.routes import ROUTES, Route
from cuckoo_api.settings import Rights
from cuckoo_api.settings.tokens import add_token, revoke_token

pytestmark = pytest.mark.slow

MAIN = "the-main-token"
LIST = "/tasks/list/1"
LACKS = "This needs a token with the right"


@pytest.fixture(autouse=True)
def _each_request_looks_at_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LOOK", 0.0)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    return tmp_path


async def ask(site: Site, token: str, path: str = LIST, method: str = "GET") -> Reply:
    return await site.client.ask(method, path, headers={"Authorization": f"Bearer {token}"})


def filled(route: Route) -> str:
    """The route's path with parts that lead nowhere."""
    return re.sub(r"{\w+}", "999", route.path.replace("{hash}", "md5"))


def endless(route: Route) -> bool:
    return route.path == "/events"


@pytest.mark.parametrize("rights", Rights)
async def test_a_token_may_do_what_its_right_says_and_no_more(
    new_site: NewSite, cwd: Path, rights: Rights
) -> None:
    token = add_token(cwd, "soc", rights=rights)
    site = await new_site(token=MAIN)
    order = list(Rights)
    for route in ROUTES:
        enough = order.index(rights) >= order.index(route.rights)
        if enough and endless(route):
            continue
        reply = await ask(site, token, filled(route), route.method)
        if enough or route.is_open:
            assert LACKS.encode() not in reply.body, route.path
            assert reply.status not in (401, 429), route.path
        else:
            assert reply.status == 403
            assert reply.message == f"{LACKS} '{route.rights}'; 'soc' has '{rights}'"


def test_the_rights_of_the_routes() -> None:
    needed = {
        rights: {f"{r.method} {r.path}" for r in ROUTES if r.rights is rights} for rights in Rights
    }
    assert needed[Rights.ADMIN] == {"GET /tasks/delete/{task_id}", "GET /exit"}
    assert needed[Rights.SUBMIT] == {
        "POST /tasks/create/file",
        "POST /tasks/create/url",
        "POST /tasks/create/submit",
        "POST /tasks/cancel/{task_id}",
        "GET /tasks/reschedule/{task_id}",
        "GET /tasks/reschedule/{task_id}/{priority}",
        "GET /tasks/rereport/{task_id}",
        "GET /tasks/reboot/{task_id}",
    }
    assert all(path.startswith("GET ") for path in needed[Rights.READ])


def test_the_document_names_the_rights() -> None:
    paths = msgspec.json.decode(document())["paths"]
    assert paths["/tasks/create/file"]["post"]["security"] == [{"token": ["submit"]}]
    assert paths["/tasks/delete/{task_id}"]["get"]["security"] == [{"token": ["admin"]}]
    assert paths["/tasks/list"]["get"]["security"] == [{"token": ["read"]}]
    assert paths["/healthz"]["get"]["security"] == []
    assert "Retry-After" in paths["/tasks/list"]["get"]["responses"]["429"]["headers"]


async def test_the_main_token_may_do_everything(new_site: NewSite, cwd: Path) -> None:
    add_token(cwd, "soc", rights=Rights.READ)
    site = await new_site(token=MAIN, debug=True)
    assert (await ask(site, MAIN, "/tasks/delete/1")).message == "Task not found"


async def test_without_the_right_nothing_is_taken_in(new_site: NewSite, cwd: Path) -> None:
    token = add_token(cwd, "dashboard", rights=Rights.READ)
    site = await new_site(token=MAIN)
    body = form(part("file", b"hello", filename="h.txt"))
    shown = f"Authorization: Bearer {token}"
    reply = await site.client.raw(post("/tasks/create/file", body, shown, f"Content-Type: {FORM}"))
    assert reply.message.startswith(LACKS)
    assert site.kept() == set()


async def test_a_token_is_accepted_as_a_password_too(new_site: NewSite, cwd: Path) -> None:
    token = add_token(cwd, "soar")
    site = await new_site(token=MAIN)
    shown = base64.b64encode(f"anyone:{token}".encode()).decode()
    assert (await site.client.get(LIST, Authorization=f"Basic {shown}")).status == 200


async def test_how_long_a_refusal_takes_says_nothing_of_the_tokens(
    new_site: NewSite, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [add_token(cwd, name) for name in ("first", "second", "third")]
    site = await new_site(token=MAIN)
    seen: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return a == b

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    for shown in (MAIN, *named, named[1][:-1], "x"):
        seen.clear()
        await ask(site, shown)
        # each time all of them, by hashes of one length
        assert len(seen) == 4
        assert {len(value) for pair in seen for value in pair} == {32}


async def test_what_stands_in_the_file_opens_nothing(new_site: NewSite, cwd: Path) -> None:
    add_token(cwd, "soc")
    site = await new_site(token=MAIN)
    [digest] = re.findall(r"^sha256 = (\w+)", (cwd / "conf/tokens.conf").read_text(), re.MULTILINE)
    for guess in [digest, digest.upper(), "soc", "0" * 64, ""]:
        assert (await ask(site, guess)).status == 401


async def test_a_token_comes_and_goes_while_the_server_runs(new_site: NewSite, cwd: Path) -> None:
    site = await new_site(token=MAIN)
    token = add_token(cwd, "soc")
    assert (await ask(site, token)).status == 200
    revoke_token(cwd, "soc")
    assert (await ask(site, token)).status == 401
    assert (await ask(site, MAIN)).status == 200


async def test_a_server_that_was_open_is_closed_by_the_first_token_for_good(
    new_site: NewSite, cwd: Path
) -> None:
    site = await new_site()
    assert (await site.client.get(LIST)).status == 200
    token = add_token(cwd, "soc")
    assert (await site.client.get(LIST)).status == 401
    assert (await ask(site, token)).status == 200
    revoke_token(cwd, "soc")
    assert (await site.client.get(LIST)).status == 401
    (cwd / "conf/tokens.conf").unlink()
    assert (await site.client.get(LIST)).status == 401


async def test_a_file_that_became_faulty_changes_nothing(new_site: NewSite, cwd: Path) -> None:
    token = add_token(cwd, "soc")
    site = await new_site(token=MAIN)
    assert (await ask(site, token)).status == 200
    with (cwd / "conf/tokens.conf").open("a") as file:
        file.write("[other]\nsha256 = a-token-by-mistake\n")
    with capture_logs() as logs:
        assert (await ask(site, token)).status == 200
        assert (await ask(site, "a-token-by-mistake")).status == 401
    [line] = [line for line in logs if line["event"] == "tokens.faulty"]
    assert "[other] sha256: no SHA-256" in line["faults"][0]
    assert "a-token-by-mistake" not in str(logs)


async def test_a_token_that_asks_too_often_is_told_when_to_come_again(
    new_site: NewSite, cwd: Path
) -> None:
    token = add_token(cwd, "script", rate=1, burst=2)
    site = await new_site(token=MAIN)
    replies = [await ask(site, token, path) for path in (LIST, "/tasks/delete/1", LIST)]
    # one without the right counts too
    assert [reply.status for reply in replies] == [200, 403, 429]
    seconds = int(replies[2].headers["Retry-After"])
    assert 50 < seconds <= 60
    assert replies[2].message == (
        f"The token 'script' may send 1 requests a minute; the next one in {seconds} s"
    )
    # nobody else pays for it, and a monitor needs no token
    assert (await ask(site, MAIN)).status == 200
    assert (await ask(site, token, "/healthz")).status == 200
    # and it starts no anew because another token came
    add_token(cwd, "other")
    assert (await ask(site, token)).status == 429


def test_a_bucket_fills_again_as_time_goes_by() -> None:
    bucket = Bucket(60, 3)
    assert [bucket.take(100) for _ in range(4)] == [0, 0, 0, 1]
    assert bucket.take(100.5) == 0.5
    assert bucket.take(101) == 0
    assert [bucket.take(1000) for _ in range(4)] == [0, 0, 0, 1]
    whole = Bucket(120)
    assert [bool(whole.take(5)) for _ in range(121)] == [False] * 120 + [True]
    slow = Bucket(1)
    assert [slow.take(5), slow.take(5), slow.take(64), slow.take(65)] == pytest.approx(
        [0, 60, 1, 0]
    )


@pytest.fixture
def lines(_only_errors_are_logged: None) -> Iterator[list[dict[str, object]]]:
    """Everything that is logged, whatever its level."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    with capture_logs() as logs:
        yield logs  # type: ignore[misc]  # structlog's own mapping


async def test_the_log_has_names_and_no_token(
    new_site: NewSite, cwd: Path, lines: list[dict[str, object]]
) -> None:
    token = add_token(cwd, "soc", rights=Rights.READ, rate=1, burst=5)
    site = await new_site(token=MAIN)
    secrets = [token, MAIN, "a-wrong-guess"]
    for shown in secrets:
        for path in [LIST, "/tasks/delete/1", "/nosuch", "/tasks/view/1"]:
            reply = await ask(site, shown, path)
            assert shown not in reply.body.decode()
    for shown in [token, token]:
        await ask(site, shown)
    await asyncio.sleep(0)  # the last line is written after its answer
    answered = [line for line in lines if line["event"] == "request"]
    assert [line["client"] for line in answered[:12]] == ["soc"] * 4 + ["api_token"] * 4 + [
        None
    ] * 4
    assert {line["status"] for line in answered} == {200, 401, 403, 404, 429}
    for secret in secrets:
        assert secret not in json.dumps(lines, default=repr)
        assert secret not in repr(site.settings)
