"""Where a server listens, what it refuses, and how it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from servekit import PATIENCE, Server, serving

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server import run as module
from cuckoo_api.server.app import create_app
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.server.run import check_bind, serve
from cuckoo_api.settings import CuckooSection, Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def server(settings: Settings) -> Server:
    return Server(create_app(settings, engine=False))


def without_token(settings: Settings) -> Settings:
    return replace(settings, cuckoo=CuckooSection(machinery=(), freespace=0))


# -- where it listens ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "localhost.example"])
async def test_without_a_token_only_this_machine_may_connect(settings: Settings, host: str) -> None:
    (settings.cwd / "cuckoo.db").unlink()
    with pytest.raises(ConfigError) as refusal:
        await serve(create_app(without_token(settings)), host=host, port=0)

    [fault] = refusal.value.faults
    assert fault.startswith(f"refusing to listen on {host!r} without authentication: set [cuckoo]")
    assert list(settings.cwd.iterdir()) == []  # refused before anything was opened


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_the_loopback_no_token_is_needed(host: str) -> None:
    check_bind(host, asks_for_token=False)


def test_with_a_token_any_address_will_do() -> None:
    check_bind("0.0.0.0", asks_for_token=True)


async def test_port_0_is_a_free_port_that_is_told(settings: Settings) -> None:
    async with serving(settings) as url, aiohttp.ClientSession() as session:
        assert not url.endswith(":0")
        async with session.get(f"{url}/healthz") as response:
            assert response.status == 200


async def test_a_port_that_is_taken_is_said_in_one_line_and_nothing_is_left_open(
    settings: Settings,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as refusal:
            await serve(create_app(settings), port=port)

    [fault] = refusal.value.faults
    assert fault.startswith(f"cannot listen on 127.0.0.1:{port}: ")
    assert "address already in use" in fault
    with engine_lock(settings.cwd):
        pass  # the refused server holds it no more
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_unix_socket_instead_of_tcp(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(settings, unix_socket=path) as url:
        assert url == f"unix:{path}"
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession("http://localhost", connector=connector) as session,
            session.get("/healthz") as response,
        ):
            assert response.status == 200
    assert not path.exists()


async def test_a_socket_that_a_killed_server_left_is_taken_over(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(settings, unix_socket=path) as url:
        assert url == f"unix:{path}"


async def test_a_file_in_the_place_of_the_socket_stays(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=f"cannot listen on {path}: "):
        await server.start(unix_socket=path)

    assert path.read_text() == "mine"


# -- how it stops -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_and_is_then_the_processs_own(
    server: Server, number: signal.Signals
) -> None:
    await server.start()
    os.kill(os.getpid(), number)
    await server.ended()

    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


HEAD = (
    b"POST /tasks/create/url HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 20\r\n\r\n"
)
BODY = b"url=http://e.example"


async def test_what_is_under_way_is_answered_before_it_stops(server: Server) -> None:
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + BODY[:7])
    await _received(server)
    os.kill(os.getpid(), signal.SIGTERM)
    await _refuses(server)
    writer.write(BODY[7:])
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()  # to the end: it closes the connection
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"task_id":1' in answer
    assert b"\r\nconnection: close\r\n" in answer.lower()
    await server.ended()


async def test_a_connection_that_is_kept_alive_may_ask_once_more(server: Server) -> None:
    await server.start()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/healthz") as response:
            assert "close" not in response.headers.get("Connection", "")
        os.kill(os.getpid(), signal.SIGTERM)
        await _refuses(server)
        async with session.get(f"{server.url}/healthz") as response:
            assert (response.status, response.headers["Connection"]) == (200, "close")
        await server.ended()


async def test_an_idle_connection_holds_nothing_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN", 0.01)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    await server.ended()

    assert await reader.read() == b""
    writer.close()


async def _received(server: Server) -> None:
    """Until a request is being read: the server's answer to another one is proof."""
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/healthz"):
        pass


async def _refuses(server: Server) -> None:
    """Until it takes no new connections."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except ConnectionRefusedError:
                return
            writer.close()
