"""The API for WSGI servers, uWSGI above all, whose workers know nothing of asyncio.

Each of their workers serves the API alone. The engine is a process of its own, of which there is
one. The working directory is ``$CUCKOO_CWD``.
"""

from __future__ import annotations

import asyncio
import atexit
import http.client
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from cuckoo_api.server.uwsgi import end_when_replaced

if TYPE_CHECKING:
    from cuckoo_api.http.protocol import Runner

CHUNK = 256 << 10
"""Bytes of a body that are passed on at once."""
FOLLOWERS = 4
"""Answers without an end that one worker gives at the same time: each keeps a thread busy."""
STREAM = 15.0
"""Seconds after which the next event ends an answer that has no end of its own. Whoever follows it
comes again; a worker that is to be replaced waits for its answers."""
STOP = 20.0
"""Seconds for the API to close when its worker ends."""

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_HOP = {
    "connection",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
}
"""Headers that are between two neighbours alone."""
_OURS = {*_HOP, "content-length", "content-type", "x-forwarded-for"}
"""Headers of a request that are made anew: nginx sends some of them twice."""

Environ = dict[str, Any]


class StartResponse(Protocol):
    """WSGI's."""

    def __call__(self, status: str, headers: list[tuple[str, str]], /) -> object:
        """Begin the answer."""


def create_application() -> Bridge:
    """The WSGI callable, with the API started: what is wrong with the settings is raised here.

    For uWSGI's ``module = cuckoo_api.server.wsgi:create_application()`` with ``lazy-apps``: the
    API does not survive a fork.
    """
    end_when_replaced(lambda: api.stop())
    api = Api(_create_runner)
    return Bridge(api)


def _create_runner() -> Runner:
    _name_the_interpreter()
    # not before: they note which program starts their processes
    from cuckoo_api.fleet import load_plugins
    from cuckoo_api.http.keys import STREAMS
    from cuckoo_api.http.protocol import Runner
    from cuckoo_api.server.app import create_app
    from cuckoo_api.server.logs import configure_logs
    from cuckoo_api.settings import find_cwd, load_settings

    configure_logs()
    settings = load_settings(find_cwd(None), list(load_plugins().values()))
    app = create_app(settings, engine=False)
    app[STREAMS] = asyncio.Semaphore(FOLLOWERS)
    return Runner(app)


def _name_the_interpreter() -> None:
    """Say what runs Python: where it is embedded, the program's name is that of the host."""
    if "python" not in Path(sys.executable).name:
        sys.executable = str(Path(sys.prefix) / "bin" / "python3")


class Api:
    """An application on an event loop, in a thread of its own."""

    def __init__(self, create: Callable[[], Runner]) -> None:
        """Start it. Raises what the start raises."""
        self._stopping = asyncio.Event()
        started: Future[tuple[asyncio.AbstractEventLoop, Runner]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(create, started)), name="api", daemon=True
        )
        self._thread.start()
        self._loop, self._runner = started.result()
        atexit.register(self.stop)

    async def _run(
        self,
        create: Callable[[], Runner],
        started: Future[tuple[asyncio.AbstractEventLoop, Runner]],
    ) -> None:
        runner: Runner | None = None
        try:
            runner = create()
            await runner.setup()
        except Exception as exc:  # noqa: BLE001 - it is raised in the thread that waits for this one
            started.set_exception(exc)
        else:
            started.set_result((asyncio.get_running_loop(), runner))
            await self._stopping.wait()
        finally:
            if runner is not None:
                await runner.cleanup()

    def connect(self) -> socket.socket:
        """A connection to it that nobody else can make."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        server = self._runner.server
        made = self._loop.connect_accepted_socket(server, theirs)  # type: ignore[arg-type]  # set up
        try:
            asyncio.run_coroutine_threadsafe(made, self._loop).result()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return ours

    def stop(self) -> None:
        """Close it, once."""
        atexit.unregister(self.stop)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(STOP)


class Bridge:
    """A WSGI callable that passes requests on to an API, and its answers back, as streams."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        connection = http.client.HTTPConnection("localhost")
        connection.auto_open = 0
        connection.sock = self._api.connect()
        body = _body(environ)
        try:
            try:
                _send(connection, environ, body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it is answered already, without the rest
            answer = connection.getresponse()
            # what is left unread when the connection closes would take the answer with it
            for _ in body:
                pass
        except BaseException:
            connection.close()
            raise
        # of HTTP/1.0, to a proxy that has no connection to keep
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in _HOP]
        start_response(f"{answer.status} {answer.reason}", headers)
        return _pieces(connection, answer)


def _send(connection: http.client.HTTPConnection, environ: Environ, body: Iterable[bytes]) -> None:
    target = environ.get("REQUEST_URI") or _target(environ)
    method = environ["REQUEST_METHOD"]
    # as a client would have to write it: bytes that stand for themselves are let through
    target = quote(target, safe=_PRINTABLE, encoding="latin-1")
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for key, value in _headers(environ):
        connection.putheader(key, value)
    connection.endheaders()
    answered = select.poll()
    answered.register(connection.sock, select.POLLIN)
    for data in body:
        if answered.poll(0):
            return
        connection.send(data)


def _target(environ: Environ) -> str:
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    target = quote(path, encoding="latin-1") or "/"
    query = environ.get("QUERY_STRING")
    return f"{target}?{query}" if query else target


def _headers(environ: Environ) -> Iterator[tuple[str, str]]:
    for key, value in environ.items():
        name = key[5:].replace("_", "-").title()
        if key.startswith("HTTP_") and name.lower() not in _OURS:
            yield name, value
    if environ.get("CONTENT_TYPE"):
        yield "Content-Type", environ["CONTENT_TYPE"]
    if _is_chunked(environ):
        yield "Transfer-Encoding", "chunked"
    elif environ.get("CONTENT_LENGTH"):
        yield "Content-Length", environ["CONTENT_LENGTH"]
    if environ.get("REMOTE_ADDR"):
        # not what the client says of itself
        yield "X-Forwarded-For", environ["REMOTE_ADDR"]
    yield "Connection", "close"


def _is_chunked(environ: Environ) -> bool:
    """Whether a body comes whose length nobody knows; nginx keeps such a body and counts it."""
    return not environ.get("CONTENT_LENGTH") and bool(environ.get("wsgi.input_terminated"))


def _body(environ: Environ) -> Iterator[bytes]:
    """What is left of the request's body."""
    read = environ["wsgi.input"].read
    if _is_chunked(environ):
        while data := read(CHUNK):
            yield b"%x\r\n%b\r\n" % (len(data), data)
        yield b"0\r\n\r\n"
        return
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left and (data := read(min(left, CHUNK))):
        left -= len(data)
        yield data
    if left:
        raise ConnectionAbortedError("the client went away in the middle of its request")


def _pieces(
    connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
) -> Iterator[bytes]:
    is_endless = answer.headers.get_content_type() == "text/event-stream"
    end = monotonic() + STREAM if is_endless else float("inf")
    try:
        while data := answer.read1(CHUNK):
            yield data
            if monotonic() > end:
                return
        if answer.length:  # half an answer: only a broken connection says so
            raise ConnectionAbortedError
    finally:
        answer.close()
        connection.close()
