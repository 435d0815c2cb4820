"""The API as a WSGI callable, called as a WSGI server would call it."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cuckoo_api.http.protocol import Runner
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server import wsgi
from cuckoo_api.server.app import create_app
from cuckoo_api.server.uwsgi import end_when_replaced
from cuckoo_api.settings import Settings
from cuckoo_api.settings.init import init_cwd

pytestmark = pytest.mark.slow

TOKEN = "secret"
FILE = b"#!/bin/sh\nexit 0\n" * 100_000
BODY = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.sh"\r\n\r\n'
    + FILE
    + b"\r\n--b--\r\n"
)
FORM = "multipart/form-data; boundary=b"


class Answer:
    """What a server is told."""

    def __init__(self, bridge: wsgi.Bridge, environ: dict[str, Any]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b"".join(bridge(environ, self._start))

    def _start(self, status: str, headers: list[tuple[str, str]], /) -> None:
        self.status = int(status.split()[0])
        self.headers = {name.lower(): value for name, value in headers}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def environ(line: str, body: bytes = b"", **more: object) -> dict[str, Any]:
    """A request, as nginx and uWSGI describe it."""
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    return {
        "REQUEST_METHOD": method,
        "REQUEST_URI": target,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": FORM if body else "",
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "localhost",
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
        "wsgi.input": io.BytesIO(body),
        **more,
    }


def serve(app: web.Application) -> wsgi.Api:
    return wsgi.Api(lambda: Runner(app))


@pytest.fixture
def api(settings: Settings) -> Iterator[wsgi.Api]:
    (settings.storage / "analyses").mkdir(parents=True)
    (settings.storage / "binaries").mkdir()
    api = serve(create_app(settings, engine=False))
    yield api
    api.stop()


@pytest.fixture
def bridge(api: wsgi.Api) -> wsgi.Bridge:
    return wsgi.Bridge(api)


def test_a_file_goes_in_and_out(bridge: wsgi.Bridge) -> None:
    assert Answer(bridge, environ("POST /tasks/create/file", BODY)).json == {"task_id": 1}
    sha256 = hashlib.sha256(FILE).hexdigest()
    answer = Answer(bridge, environ(f"GET /files/get/{sha256}"))
    assert (answer.status, answer.body) == (200, FILE)
    assert answer.headers["content-length"] == str(len(FILE))
    part = Answer(bridge, environ(f"GET /files/get/{sha256}", HTTP_RANGE="bytes=2-8"))
    assert (part.status, part.body) == (206, FILE[2:9])
    head = Answer(bridge, environ(f"HEAD /files/get/{sha256}"))
    assert (head.headers["content-length"], head.body) == (str(len(FILE)), b"")


def test_headers_that_come_twice_or_belong_to_a_connection_are_left_out(
    bridge: wsgi.Bridge,
) -> None:
    twice = {
        "HTTP_CONTENT_TYPE": FORM,
        "HTTP_CONTENT_LENGTH": str(len(BODY)),
        "HTTP_TRANSFER_ENCODING": "chunked",
        "HTTP_CONNECTION": "keep-alive",
        "HTTP_EXPECT": "100-continue",
    }
    answer = Answer(bridge, environ("POST /tasks/create/file", BODY, **twice))
    assert answer.json == {"task_id": 1}
    assert not {"connection", "keep-alive", "transfer-encoding"} & answer.headers.keys()


def test_a_body_of_unknown_length_is_read_to_its_end(bridge: wsgi.Bridge) -> None:
    unknown = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    answer = Answer(bridge, environ("POST /tasks/create/file", BODY, **unknown))
    assert answer.json == {"task_id": 1}


def test_an_early_refusal_arrives_and_the_rest_is_taken(bridge: wsgi.Bridge) -> None:
    body = BODY + bytes(8 << 20)
    request = environ("POST /tasks/create/file", body, HTTP_AUTHORIZATION="Bearer no")
    answer = Answer(bridge, request)
    assert answer.status == 401
    assert request["wsgi.input"].tell() == len(body)


def test_a_client_that_goes_away_leaves_nothing(bridge: wsgi.Bridge) -> None:
    request = environ("POST /tasks/create/file", BODY, CONTENT_LENGTH=str(len(BODY) + 1))
    with pytest.raises(ConnectionAbortedError):
        Answer(bridge, request)
    assert Answer(bridge, environ("GET /tasks/list")).json == {"tasks": []}


@pytest.mark.parametrize(
    "target", ["/tasks/list?owner=%C3%A9", "/tasks/list?owner=\xc3\xa9", "/tasks/list?owner=a b"]
)
def test_any_address_is_passed_on(bridge: wsgi.Bridge, target: str) -> None:
    assert Answer(bridge, environ(f"GET {target}")).json == {"tasks": []}


def test_an_address_is_made_of_its_parts_where_it_is_not_given(bridge: wsgi.Bridge) -> None:
    request = environ("GET /tasks/list/a b?owner=x", REQUEST_URI="")
    answer = Answer(bridge, request)
    assert answer.status == 404
    request = environ("GET /tasks/list?limit=x", REQUEST_URI="")
    assert Answer(bridge, request).status in (200, 400)


def test_the_servers_word_on_the_client_counts_and_not_the_clients(
    api: wsgi.Api, logs: list[Any]
) -> None:
    Answer(wsgi.Bridge(api), environ("GET /tasks/list", HTTP_X_FORWARDED_FOR="6.6.6.6"))
    api.stop()  # the line is written once the answer is sent
    assert [log["remote"] for log in logs if log["event"] == "request"] == ["192.0.2.7"]


def test_half_an_answer_is_not_passed_off_as_a_whole_one() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/", break_off)
    api = serve(app)
    with pytest.raises(ConnectionAbortedError):
        Answer(wsgi.Bridge(api), environ("GET /"))
    api.stop()


def test_an_answer_without_an_end_is_given_one(
    bridge: wsgi.Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "STREAM", 0)
    assert Answer(bridge, environ("GET /events")).body == b":\n\n"


def test_what_keeps_the_api_from_starting_is_raised_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_cwd(tmp_path, [])
    (tmp_path / "conf" / "cuckoo.conf").write_text("[api]\nport = many\n")
    monkeypatch.setenv("CUCKOO_CWD", str(tmp_path))
    monkeypatch.setattr("cuckoo_api.server.logs.configure_logs", lambda: None)
    with pytest.raises(ConfigError, match="port"):
        wsgi.create_application()


def test_where_python_is_embedded_its_own_program_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/usr/bin/uwsgi-core")
    monkeypatch.setattr("sys.prefix", "/opt/cuckoo")
    wsgi._name_the_interpreter()
    assert wsgi.sys.executable == "/opt/cuckoo/bin/python3"


@pytest.mark.parametrize("threads", [b"1", b"16", None])
def test_a_signal_is_taken_from_no_server_that_deals_with_it_itself(
    monkeypatch: pytest.MonkeyPatch, threads: bytes | None
) -> None:
    """Those that are not uWSGI, and its versions from 2.0.26 on, whose function is hidden."""
    if threads:
        module = types.SimpleNamespace(opt={"threads": threads})
        monkeypatch.setitem(sys.modules, "uwsgi", module)
    before = threading.active_count()
    end_when_replaced(lambda: None)
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert threading.active_count() == before
