"""Every route with odd parts in its path: nothing fails, and nothing secret comes out."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from httpkit import HELLO, Reply, Site, get, read_reply

from cuckoo_api.http.routes import ROUTES
from cuckoo_api.settings import Rights

pytestmark = pytest.mark.slow

AT_ONCE = 100
"""Requests that one connection carries before the first answer is read."""
SECRETS = [b"the operator's own", b"SQLite format 3", b"root:x:0:0"]

PIECES = [
    "..", "%2e%2e", "%2E.", "..%2f", "%2f..%2f", "..%5c", "\\..\\", "....//", ".", "", "//", "%2f",
    "%00", "%0a", "%0d%0aX: y", "%", "%%", "%zz", "%ff", "%c0%ae%c0%ae", "%ed%a0%80", "%u002e",
    "~", "*", "?", "#", ";", ":", "@", "&", "=", "+", "$", "'", "%22", "<script>", "{task_id}",
    "0", "1", "01", "-1", "1.5", "1e3", "0x1", "NaN", "null", "true", "٣", "é", "%F0%9F%98%80",
    str((1 << 63) - 1), str(1 << 63), str(1 << 64), "9" * 50, "9" * 5000, "x" * 300, "x" * 7000,
    "json", "html", "all", "dropped", "id", "md5", "sha1", "sha256", HELLO, HELLO.upper(),
    "v1", "tasks", "files", "memory", "secret", "cuckoo.db", "conf%2fcuckoo.conf", "etc", "passwd",
    "file:%2f%2f%2fetc%2fpasswd", "http:%2f%2f127.0.0.1%2f", "analyses", "binaries", ".incoming-",
]  # fmt: skip
PLACES = ["", "/v1", "/files/get", "/tasks", "/tasks/report/1", "/memory/get/1", "/pcap/get/1"]


def odd_paths() -> list[str]:
    """Each odd part in every variable place of every route, and where no route goes on."""
    asking = [route.path for route in ROUTES if route.rights is Rights.READ]
    shapes = [path for path in asking if "{" in path]
    shapes += [path.replace("{task_id}", "1") for path in shapes]
    shapes += [f"{place}/{{odd}}" for place in PLACES]
    paths = [re.sub(r"{\w+}", "{0}", shape).format(piece) for shape in shapes for piece in PIECES]
    return list(dict.fromkeys(paths))


async def answers(site: Site, paths: list[str]) -> list[Reply]:
    """What each is answered, all over one connection."""
    reader, writer = await site.client.connect()
    try:
        writer.write(b"".join(get(path) for path in paths))
        return [await read_reply(reader) for _ in paths]
    finally:
        writer.close()


async def test_no_path_is_too_odd(site: Site) -> None:
    for name in ["secret", "conf/cuckoo.conf", "storage/secret", "storage/analyses/secret"]:
        path = site.settings.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SECRETS[0])
    site.put("reports/report.json", b"{}")
    site.put("dump.pcap", b"pcap")
    await site.client.upload(b"hello")
    paths = odd_paths()
    # what is no line of HTTP ends its connection, and goes alone
    requests = [path for path in paths if re.fullmatch(r"[!-~]{1,8000}", path)]
    seen: Counter[int] = Counter()
    for start in range(0, len(requests), AT_ONCE):
        batch = requests[start : start + AT_ONCE]
        for path, reply in zip(batch, await answers(site, batch), strict=True):
            seen[reply.status] += 1
            assert reply.status < 500, path
            assert reply.status < 400 or reply.message
            assert not any(secret in reply.body for secret in SECRETS), path
    for path in set(paths) - set(requests):
        reply = await site.client.raw(get(path))
        assert (reply.status, bool(reply.message)) == (400, True), path
    assert set(seen) == {200, 400, 404}
    assert seen[200] > 20  # or it has tried nothing but walls
    assert await site.ids() == [1]
