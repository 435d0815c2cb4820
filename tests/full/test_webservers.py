"""The API behind nginx: by uWSGI, by gunicorn, and on a unix socket, with Debian's own programs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from freshenv import ROOT, FreshEnvironment
from webserverkit import Probe, WebHost, read_reply

MIB = 1 << 20
LARGE = 300
"""MiB."""
MEDIUM = 40
"""Where the way is that which others have proven with more."""
BLOCK = os.urandom(MIB)
BOUNDARY = "b0undary"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()
FORM = f"multipart/form-data; boundary={BOUNDARY}"
CREATE = "POST /tasks/create/file"
SOCKET = "/run/cuckoo/api.sock"
BUSY = """
from time import perf_counter

from cuckoo_api.server.wsgi import create_application

answer = create_application()


def application(environ, start_response):
    end = perf_counter() + 0.02
    while perf_counter() < end:
        pass
    return answer(environ, start_response)
"""
RELOADS = 3
PAGE = "docs/webservers.md"
SECTIONS = {"uwsgi": "nginx and uWSGI", "gunicorn": "gunicorn", "socket": "nginx and a unix socket"}
"""Where the page says how to let the API run; tests/pagekit.py does it."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    """An installation on the Python that uWSGI's plugin runs: Debian's."""
    made = FreshEnvironment(tmp_path_factory.mktemp("web") / "venv", "/usr/bin/python3")
    made.install(str(ROOT))
    made.add("gunicorn")
    return made


@pytest.fixture(scope="module", params=SECTIONS)
def kind(request: pytest.FixtureRequest) -> str:
    """What runs the API."""
    return str(request.param)


@pytest.fixture(scope="module")
def host(
    kind: str,
    environment: FreshEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WebHost]:
    """nginx before a running API: what the page says was done, word for word."""
    with (
        WebHost(tmp_path_factory.mktemp("host"), environment) as made,
        made.reader() as administrator,
    ):
        made.run("nginx")
        if kind != "socket":
            administrator.follow(PAGE, "Web servers")  # the engine
        administrator.follow(PAGE, SECTIONS[kind])
        made.until_served()
        yield made


@pytest.fixture
def bare(environment: FreshEnvironment, tmp_path: Path) -> Iterator[WebHost]:
    """Where nothing runs yet."""
    with WebHost(tmp_path, environment) as made:
        yield made


def contents(mib: int) -> Iterator[bytes]:
    """A file of so many MiB, no two of which are the same."""
    for number in range(mib):
        yield number.to_bytes(8) + BLOCK[8:]


def digest(mib: int) -> str:
    sha256 = hashlib.sha256()
    for data in contents(mib):
        sha256.update(data)
    return sha256.hexdigest()


def upload(host: WebHost, mib: int, *, chunked: bool = False) -> dict[str, object]:
    """Submit the file; what was answered."""
    length = len(HEAD) + mib * MIB + len(TAIL)
    framing = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": length}
    with host.connect() as connection:
        connection.sendall(host.head(CREATE, Content_Type=FORM, **framing))
        for data in form(mib):
            connection.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        reply = read_reply(connection)
    assert reply.status == 200, reply
    answer: dict[str, object] = json.loads(reply.body)
    return answer


def form(mib: int) -> Iterator[bytes]:
    """What submits the file, piece by piece."""
    yield HEAD
    yield from contents(mib)
    yield TAIL


def test_large_files_go_both_ways_as_they_are_and_through_little_memory(
    host: WebHost, kind: str
) -> None:
    size = LARGE if kind == "uwsgi" else MEDIUM
    sha256 = digest(size)
    assert upload(host, size) == {"task_id": 1}
    with host.connect() as connection:
        connection.sendall(host.head(f"GET /files/get/{sha256}"))
        got = hashlib.sha256()
        reply = read_reply(connection, into=got)
    assert reply.status == 200
    assert got.hexdigest() == sha256

    part = host.ask(f"GET /files/get/{sha256}", Range=f"bytes={5 * MIB - 2}-{5 * MIB + 9}")
    assert part.status == 206
    assert part.body == BLOCK[-2:] + (5).to_bytes(8) + BLOCK[8:10]
    assert part.headers["content-range"] == f"bytes {5 * MIB - 2}-{5 * MIB + 9}/{size * MIB}"

    assert host.peak("nginx") < 64 * MIB
    for program in ("cuckoo", "uwsgi"):
        assert host.peak(program) < 180 * MIB, program


def test_a_body_of_unknown_length_arrives_whole(host: WebHost) -> None:
    upload(host, 3, chunked=True)
    assert host.ask(f"GET /files/view/sha256/{digest(3)}").status == 200


def test_what_is_refused_early_is_answered_whatever_follows(host: WebHost) -> None:
    """Not a reset: the client is still sending then."""
    length = len(HEAD) + 64 * MIB + len(TAIL)
    head = host.head(CREATE, Content_Type=FORM, Content_Length=length, Authorization="Bearer no")
    with host.connect() as connection:
        connection.sendall(head)
        for data in form(64):
            try:
                connection.sendall(data)
            except ConnectionError:
                break  # it is answered, and the rest is not wanted
        reply = read_reply(connection)
    assert reply.status == 401
    assert "Authorization: Bearer" in json.loads(reply.body)["message"]


def test_errors_of_the_api_are_passed_on_as_they_are(host: WebHost) -> None:
    reply = host.ask("GET /tasks/view/4711")
    assert reply.status == 404
    assert reply.headers["server"] in ("cuckoo-api", "nginx/1.22.1", "nginx")
    assert "4711" in reply.body.decode() or "Task" in reply.body.decode()
    assert host.ask("GET /tasks/list/1?owner=%C3%A9&x=a%20b").status == 200
    head = host.ask("GET /files/get/none")
    assert head.status == 404


def test_what_nginx_itself_refuses_is_json_too(host: WebHost) -> None:
    cases = {
        413: host.head(CREATE, Content_Type=FORM, Content_Length=2 << 30),
        414: host.head(f"GET /{'a' * 40_000}"),
        431: host.head("GET /tasks/list", X_Large="a" * 40_000),
        400: b"GET /tasks/list HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    }
    for status, request in cases.items():
        with host.connect() as connection:
            connection.sendall(request)
            reply = read_reply(connection)
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
        assert json.loads(reply.body)["message"]


def test_the_log_says_where_a_client_is_and_believes_no_client(host: WebHost) -> None:
    reply = host.ask("GET /tasks/list/1", "127.0.0.9", X_Forwarded_For="6.6.6.6")
    mark = reply.headers["x-request-id"]
    host.until_said(mark)
    [line] = [line for line in host.api_log().splitlines() if mark in line and '"path"' in line]
    assert json.loads(line)["remote"] == "127.0.0.9"


def test_a_follower_of_the_events_hears_of_a_submission(host: WebHost) -> None:
    with host.connect() as connection:
        connection.sendall(host.head("GET /events"))
        stream = connection.makefile("rb")
        assert stream.readline().split()[1] == b"200"
        while stream.readline().strip() != b":":
            pass  # the head, and what says that it has begun
        task_id = upload(host, 1)["task_id"]
        while not (line := stream.readline()).startswith(b"data: "):
            assert line
        assert json.loads(line[6:])["id"] == task_id


def test_uwsgis_workers_are_replaced_under_load(bare: WebHost) -> None:
    """The application has Python's lock most of the time: one reload in three would hang by it."""
    module = bare.cwd / "busy.py"
    module.write_text(BUSY)
    bare.start_uwsgi(
        ("cuckoo_api.server.wsgi:create_application()", "busy:application"),
        ("workers = 2\nthreads = 16", f"workers = 1\nthreads = 4\npythonpath = {bare.cwd}"),
    )
    bare.start_nginx()
    with Probe(bare) as probe:
        for _ in range(RELOADS):
            probe.until_answered(2 * probe.clients)
            bare.reload_uwsgi()
        probe.until_answered(2 * probe.clients)
    assert set(probe.seen) == {"200"}, probe.seen


def test_gunicorns_workers_are_replaced_under_load_too(bare: WebHost) -> None:
    with bare.reader() as administrator:
        bare.run("nginx")
        administrator.follow(PAGE, SECTIONS["gunicorn"])
        bare.until_served()
        [pid] = re.findall(r"\[(\d+)\] \[INFO\] Listening at", bare.api_log())
        with Probe(bare) as probe:
            probe.until_answered(2 * probe.clients)
            os.kill(int(pid), signal.SIGHUP)
            bare.until_said("Handling signal: hup")
            bare.until_said("Booting worker", 4)
            bare.until_said("Worker exiting", 2)
            probe.until_answered(2 * probe.clients)
    assert set(probe.seen) == {"200"}, probe.seen


def test_the_page_has_nginx_speak_tls(bare: WebHost, tmp_path: Path) -> None:
    [lines] = re.findall(r"```nginx\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    bare.run(
        *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt"),
        *("ec_paramgen_curve:prime256v1", "-subj", "/CN=sandbox.example.org", "-addext"),
        *("subjectAltName=DNS:sandbox.example.org", "-keyout", str(key), "-out", str(chain)),
    )
    folder = "/etc/letsencrypt/live/sandbox.example.org"
    for old, new in (
        (f"{folder}/fullchain.pem", str(chain)),
        (f"{folder}/privkey.pem", str(key)),
        ("listen 443 ssl", f"listen 127.0.0.1:{bare.port} ssl"),
        ("listen [::]:443 ssl", f"listen [::1]:{bare.port} ssl"),
    ):
        assert old in lines
        lines = lines.replace(old, new)
    bare.start_nginx(change=[(f"    listen 127.0.0.1:{bare.port};\n", lines)])
    context = ssl.create_default_context(cafile=str(chain))
    with (
        bare.connect() as plain,
        context.wrap_socket(plain, server_hostname="sandbox.example.org") as connection,
    ):
        assert connection.version() == "TLSv1.3"
        connection.sendall(bare.head("GET /tasks/list"))
        assert read_reply(connection).status == 502  # of nginx: no API runs here


def test_an_api_that_is_away_or_hangs_is_told_of(bare: WebHost) -> None:
    bare.start_nginx("--socket", SOCKET, change=[("read_timeout 600s", "read_timeout 1s")])
    reply = bare.ask("GET /tasks/list")
    assert (reply.status, reply.headers["content-type"]) == (502, "application/json")
    assert json.loads(reply.body) == {"message": "The API does not answer; is it running?"}
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(bare.path(SOCKET)))
        silent.listen()
        bare.path(SOCKET).chmod(0o666)
        reply = bare.ask("GET /tasks/list")
    assert (reply.status, reply.headers["content-type"]) == (504, "application/json")
    assert json.loads(reply.body) == {"message": "The API has not answered in time"}
