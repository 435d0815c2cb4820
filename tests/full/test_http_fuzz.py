"""A server that strangers try to break: what its own description allows, and paths it does not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import signal
import string
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes

import msgspec
import pytest

from cuckoo_api.http.openapi import document
from cuckoo_api.http.routes import FILTERS, PATTERNS, ROUTES, Route
from cuckoo_api.model.machine import Machine
from cuckoo_api.settings.init import with_value
from cuckoo_api.store import Store

EXAMPLES = 10
"""For each operation."""
UNCHECKED = (
    # an answer to what the description forbids may be friendly: unknown fields are ignored
    "negative_data_rejection",
    # what it allows may be refused for what it cannot say: a machine that is not there
    "positive_data_acceptance",
)
ABOUT_TOKENS = ("ignored_auth", "missing_required_header")
"""What does not hold where nobody is asked for a token."""
NUMBER = 10_000
AT_ONCE = 100
SECRET = b"the operator's own"
ANSWERED_500 = ("/vpn/status", "/tasks/create/submit", "/tasks/delete/{task_id}")
"""Cuckoo 2 said so, and clients know it."""
ENDLESS = "/events"
SAMPLE = b"#!/bin/sh\necho hello\n"
RESULTS = {
    "reports/report.json": b'{"info": {"id": 1}}',
    "reports/report.html": b"<html></html>",
    "shots/0001.jpg": b"\xff\xd8\xff\xe0",
    "memory/7-1.dmp": b"dump",
    "memory.dmp": b"full",
    "dump.pcap": bytes(24),
    "files/dropped": b"dropped",
    "package_files/one": b"one",
}


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

    def answered(self) -> Iterator[tuple[str, str, int]]:
        """Method, path and status of each request so far."""
        for line in self.log.splitlines():
            if '"event":"request"' in line:
                said = json.loads(line)
                yield said["method"], said["path"], said["status"]

    def upload(self) -> int:
        """Submit the sample; the task's id."""
        body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.sh"\r\n\r\n'
        request = urllib.request.Request(
            f"{self.url}/tasks/create/file",
            body + SAMPLE + b"\r\n--b--\r\n",
            {
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "multipart/form-data; boundary=b",
            },
        )
        with urllib.request.urlopen(request) as answer:
            return int(json.load(answer)["task_id"])


@contextmanager
def serving(cwd: Path, *, has_token: bool) -> Iterator[Server]:
    """A server on a fresh working directory; it must stop as it should, and have had no fault."""
    cuckoo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd)]
    subprocess.run([*cuckoo, "init"], check=True)
    conf = cwd / "conf" / "cuckoo.conf"
    [token] = re.findall(r"(?m)^api_token *= *(\S+)", conf.read_text())
    if not has_token:
        conf.write_text(with_value(conf.read_text(), "cuckoo", "api_token", token := ""))
    command = [*cuckoo, "api", "--no-engine", "--port", "0"]
    with (
        (cwd / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            made = Server(cwd, process.stdout.readline().split()[-1], token)
            yield made
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "request.failed" not in made.log


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One that asks for a token."""
    with serving(tmp_path / "cwd", has_token=True) as made:
        yield made


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[Server]:
    """One that asks for none."""
    with serving(tmp_path / "cwd", has_token=False) as made:
        yield made


def schemathesis(
    server: Server, folder: Path, *, prefix: str = "", phases: str, config: str = ""
) -> None:
    """Let it try every operation; it finds nothing."""
    unchecked = UNCHECKED if server.token else UNCHECKED + ABOUT_TOKENS
    lines = ["[checks]", *(f"{check}.enabled = false" for check in unchecked), config]
    for path in ANSWERED_500:
        lines += ["[[operations]]", f'include-path = "{path}"']
        lines += ["checks.not_a_server_error.enabled = false"]
    described = folder / "openapi.json"
    described.write_bytes(document())
    (folder / "schemathesis.toml").write_text("\n".join(lines))
    headers = ["--header", f"Authorization: Bearer {server.token}"] if server.token else []
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(program, "--config-file", folder / "schemathesis.toml", "run", described),
            *("--url", server.url + prefix, "--exclude-path", ENDLESS, "--phases", phases),
            *("--max-examples", str(EXAMPLES), "--no-color", *headers),
        ],
        cwd=folder,  # it leaves a folder
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def unasked(server: Server, prefix: str, statuses: range) -> set[str]:
    """The routes that have not been answered so, under this prefix."""
    answered = {(method, path) for method, path, status in server.answered() if status in statuses}
    return {
        f"{route.method} {route.path}"
        for route in ROUTES
        if route.path != ENDLESS
        and not any(
            method == route.method and pattern(prefix, route).fullmatch(path)
            for method, path in answered
        )
    }


def pattern(prefix: str, route: Route) -> re.Pattern[str]:
    """The paths of a route."""
    return re.compile(prefix + re.sub(r"{(\w+)}", lambda m: f"(?:{PATTERNS[m[1]]})", route.path))


def test_no_request_that_the_description_allows_breaks_it(server: Server, tmp_path: Path) -> None:
    schemathesis(server, tmp_path, phases="fuzzing")
    assert unasked(server, "", range(200, 600)) == set()


def test_nor_without_a_token_and_with_a_version(open_server: Server, tmp_path: Path) -> None:
    schemathesis(open_server, tmp_path, prefix="/v1", phases="fuzzing")
    assert unasked(open_server, "/v1", range(200, 600)) == set()


async def test_what_is_there_is_answered_as_the_description_says(
    server: Server, tmp_path: Path
) -> None:
    task_id, other = server.upload(), server.upload()
    for name, content in RESULTS.items():
        path = server.cwd / "storage" / "analyses" / str(task_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    await configure_a_machine(server)
    values: dict[str, Any] = {
        "task_id": task_id,
        "sample_id": 1,
        "hash": "sha256",
        "value": hashlib.sha256(SAMPLE).hexdigest(),
        "sha256": hashlib.sha256(SAMPLE).hexdigest(),
        "name": "one",
        "shot": "1",
        "pid": "7",
    }
    lines = ["[parameters]", '"query.elements" = "info"']
    lines += [f'"path.{name}" = {json.dumps(value)}' for name, value in values.items()]
    lines += ["[[operations]]", 'include-path = "/tasks/delete/{task_id}"']
    lines += [
        "checks.not_a_server_error.enabled = false",
        f'parameters = {{"path.task_id" = {other}}}',
    ]
    await asyncio.to_thread(
        schemathesis, server, tmp_path, phases="coverage", config="\n".join(lines)
    )
    left = {"GET /exit", "GET /vpn/status"}  # what they answer is an error, here
    assert unasked(server, "", range(200, 300)) == left


async def configure_a_machine(server: Server) -> None:
    store = await Store.open(f"sqlite:///{server.cwd / 'cuckoo.db'}")
    machine = Machine(
        id=0, name="one", label="one", manager="fake", ip="192.0.2.1", platform="linux",
        resultserver_ip="192.0.2.2", resultserver_port=2042,
    )  # fmt: skip
    await store.machines.sync([machine])
    await store.close()


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
