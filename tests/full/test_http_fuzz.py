"""A server that strangers try to break: what its own description allows, and paths it does not."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import msgspec
import pytest

from cuckoo_api.http.openapi import document
from cuckoo_api.http.routes import FILTERS

SECONDS = 15
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
NUMBER = 10_000
AT_ONCE = 100
SECRET = b"the operator's own"
ANSWERED_500 = ("/vpn/status", "/tasks/create/submit", "/tasks/delete/{task_id}")
"""Cuckoo 2 said so, and clients know it."""
ENDLESS = "/events"


@dataclass(frozen=True)
class Server:
    """The API alone, as an operator starts it."""

    cwd: Path
    url: str
    token: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.cwd / "server.log").read_text()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server on a fresh working directory; it must stop as it should, and have had no fault."""
    cwd = tmp_path / "cwd"
    cuckoo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd)]
    subprocess.run([*cuckoo, "init"], check=True)
    command = [*cuckoo, "api", "--no-engine", "--port", "0"]
    with (
        (cwd / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            [token] = re.findall(
                r"(?m)^api_token *= *(\S+)", (cwd / "conf/cuckoo.conf").read_text()
            )
            made = Server(cwd, url, token)
            yield made
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "request.failed" not in made.log


def test_no_request_that_the_description_allows_breaks_it(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    lines = ["[checks]", "enabled = false", *(f"{check}.enabled = true" for check in CHECKS)]
    for path in ANSWERED_500:
        lines += ["[[operations]]", f'include-path = "{path}"']
        lines += ["checks.not_a_server_error.enabled = false"]
    config.write_text("\n".join(lines))
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(program, "--config-file", config),
            *("run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {server.token}"),
            *("--exclude-path", ENDLESS, "--max-time", str(SECONDS), "--no-color"),
        ],
        cwd=tmp_path,  # it leaves a folder
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def odd_paths(random: random.Random) -> Iterator[bytes]:
    """Paths of the description with noise for their variables, in a query, or anywhere."""
    paths = [path for path in msgspec.json.decode(document())["paths"] if path != ENDLESS]
    while True:
        path = random.choice(paths)
        match random.randrange(4):
            case 0:
                place = random.randrange(1, len(path) + 1)
                path = path[:place] + noise(random) + path[place:]
            case 1:
                path = re.sub(r"{\w+}", "1", path) + f"?{random.choice(FILTERS)}={noise(random)}"
            case _:
                path = re.sub(r"{\w+}", lambda _: noise(random), path)
        yield (random.choice(["", "/v1"]) + path).encode()


def noise(random: random.Random) -> str:
    """Something that fits on a line of HTTP."""
    size = random.choice([1, 1, 2, 5, 20, 70, 300])
    match random.randrange(6):
        case 0:
            return "".join(random.choices(string.digits, k=size))
        case 1:
            return "".join(random.choices(string.punctuation, k=size)).replace(" ", "")
        case 2:
            return quote_from_bytes(random.randbytes(size), safe="")
        case 3:
            return quote("".join(map(chr, random.choices(range(0xD800), k=size))), safe="")
        case 4:
            dots = ["..", "%2e%2e", ".", "/", "%2f", "\\", "%5c", "%00", "secret", "conf"]
            return "".join(random.choices(dots, k=size))
        case _:
            return "".join(random.choices("0123456789abcdefABCDEF-+.", k=size))


async def test_ten_thousand_odd_paths(server: Server) -> None:
    for name in ["secret", "storage/secret", "storage/analyses/secret"]:
        (server.cwd / name).write_bytes(SECRET)
    folder = server.cwd / "storage/analyses/1"
    (folder / "reports").mkdir(parents=True)
    (folder / "reports/report.json").write_bytes(b"{}")
    paths = odd_paths(random.Random(1))
    seen: Counter[int] = Counter()
    for _ in range(NUMBER // AT_ONCE):
        batch = [next(paths) for _ in range(AT_ONCE)]
        for path, (status, body) in zip(batch, await ask(server, batch), strict=True):
            seen[status] += 1
            assert status < 500 or body == b'{"message":"Rooter not available"}', path
            assert SECRET not in body, path
            assert server.token.encode() not in body, path
            if status >= 400:
                assert list(msgspec.json.decode(body)) == ["message"], path
    assert seen[200] > 100  # or it has tried nothing but walls


async def ask(server: Server, paths: list[bytes]) -> list[tuple[int, bytes]]:
    """Status and body for each, in one go over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    rest = f" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
    try:
        writer.write(b"".join(b"GET " + path + rest for path in paths))
        async with asyncio.timeout(60):
            return [await answer(reader) for _ in paths]
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    assert length is not None, head
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))
