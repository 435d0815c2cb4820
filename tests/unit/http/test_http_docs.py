"""``/docs``: a page that loads, with or without a token, and reaches for nothing outside."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from httpkit import NewSite, Reply, Site

from cuckoo_api.http import docs

pytestmark = pytest.mark.slow

TOKEN = "s3cret"
VENDORED = Path(docs.__file__).with_name("viewer") / "swagger-ui"
SPELLINGS = ["/docs", "/docs/", "/v1/docs", "/v1/docs/"]
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def parts(page: Reply, path: str) -> list[str]:
    """The addresses that a browser asks for when it opens the page."""
    found = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
    return [urljoin(path, link) for link in found if link != "data:,"]


@pytest.mark.parametrize("path", SPELLINGS)
async def test_the_page_and_all_that_it_loads_are_there_before_a_token_is(
    new_site: NewSite, path: str
) -> None:
    site = await new_site(token=TOKEN)
    page = await site.client.get(path)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    loaded = parts(page, path)
    assert len(loaded) == 4
    for link in loaded:
        reply = await site.client.get(link)
        assert (reply.status, reply.headers["Content-Type"]) == (200, TYPES[Path(link).suffix])
        again = await site.client.get(link, If_None_Match=reply.headers["ETag"])
        assert (again.status, again.body) == (304, b"")
        if link.endswith("/docs.js"):
            described = urljoin(link, "../openapi.json")
            assert b'new URL("../openapi.json", document.currentScript.src)' in reply.body
    assert (await site.client.get(described)).status == 401
    shown = await site.client.get(described, Authorization=f"Bearer {TOKEN}")
    assert shown.json["info"]["title"] == "Cuckoo API"


async def test_the_policy_of_the_page_lets_it_load_from_this_server_alone(site: Site) -> None:
    headers = (await site.client.get("/docs")).headers
    policy = dict(
        directive.split(" ", 1) for directive in headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) <= {"'none'", "'self'", "data:"}
    assert {name for name, source in policy.items() if source == "data:"} == {"img-src"}
    assert headers["Referrer-Policy"] == "no-referrer"


async def test_no_address_outside_is_loaded(site: Site) -> None:
    page = await site.client.get("/docs")
    assert b"//" not in page.body
    assert not re.search(rb"<script>|\son\w+=|style=", page.body)  # the policy forbids these too
    for name in docs.STYLES:
        style = (await site.client.get(f"/docs/{name}")).body
        for link in re.findall(rb"url\(\s*[\"']?([^)\"' ]{0,12})", style):
            assert link.startswith((b"data:", b"#")), link
        assert b"@import" not in style
    own = (await site.client.get("/docs/docs.js")).body.decode()
    assert not re.search(r"[\"'`](?:\w+:)?//", own)
    assert "validatorUrl: null" in own
    assert not re.search("localStorage|sessionStorage|cookie", own)  # where a token would stay


async def test_nothing_but_its_parts_is_served(site: Site) -> None:
    for name in ["index.html", "README.md", "LICENSE", "..%2fdocs.py", "docs_js", "swagger-ui/"]:
        assert (await site.client.get(f"/docs/{name}")).status == 404, name


def test_what_others_wrote_is_as_it_came_and_says_whose_it_is() -> None:
    note = (VENDORED / "README.md").read_text("utf-8")
    hashes = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", note, re.MULTILINE))
    assert set(hashes) == {"swagger-ui-bundle.js", "swagger-ui.css"}
    for name, digest in hashes.items():
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == digest, name
    assert re.search(r"^Swagger UI \d+\.\d+\.\d+, .* Apache License 2\.0", note, re.DOTALL)
    for name in ["LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"]:
        assert (VENDORED / name).read_bytes().strip()
