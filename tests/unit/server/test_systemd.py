"""The service as systemd sees it: what it says, which sockets it takes, how it is restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from servekit import Server
from systemdkit import Listener, Service, listening

from cuckoo_api.http.keys import SERVICE, SWITCH
from cuckoo_api.model.errors import ConfigError, Unavailable
from cuckoo_api.server.app import create_app
from cuckoo_api.server.systemd import Manager, passed_sockets
from cuckoo_api.settings import CuckooSection, Settings, init_cwd
from probekit import PATIENCE, Probe

pytestmark = pytest.mark.slow

MINE = str(os.getpid())


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with Listener(tmp_path / "notify.sock") as found:
        yield found


def manager(listener: Listener, **more: str) -> Manager:
    return Manager({"NOTIFY_SOCKET": str(listener.path), **more})


# -- what is said -------------------------------------------------------------------------------


def test_variables_are_said_in_one_message(listener: Listener) -> None:
    manager(listener).tell(READY=1, STATUS="listens on http://127.0.0.1:8090")

    assert listener.next() == {"READY": "1", "STATUS": "listens on http://127.0.0.1:8090"}


def test_an_abstract_address_will_do() -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as there:
        there.bind(f"\0cuckoo-test-{MINE}")
        Manager({"NOTIFY_SOCKET": f"@cuckoo-test-{MINE}"}).tell(STOPPING=1)
        assert there.recv(100) == b"STOPPING=1"


def test_nobody_who_listens_is_no_fault(tmp_path: Path) -> None:
    Manager({"NOTIFY_SOCKET": str(tmp_path / "gone.sock")}).tell(READY=1)
    Manager({}).tell(READY=1)


def test_children_are_told_nothing_of_it() -> None:
    environ = {
        "NOTIFY_SOCKET": "/n", "WATCHDOG_PID": MINE, "WATCHDOG_USEC": "1",
        "LISTEN_PID": MINE, "LISTEN_FDS": "0", "LISTEN_FDNAMES": "", "HOME": "/",
    }  # fmt: skip
    Manager(environ)
    passed_sockets(environ)

    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    ("pid", "usec", "seconds"),
    [("", "60000000", 60), ("own", "500000", 0.5), ("1", "60000000", 0), ("", "", 0), ("", "x", 0)],
)
def test_the_watchdog_is_for_the_process_that_it_names(pid: str, usec: str, seconds: float) -> None:
    pid = MINE if pid == "own" else pid
    assert Manager({"WATCHDOG_PID": pid, "WATCHDOG_USEC": usec}).watchdog == seconds


def test_a_reload_is_said_with_its_time_and_its_end(listener: Listener) -> None:
    before = time.monotonic_ns() // 1000
    with manager(listener).reloading():
        began = listener.next()
    assert began["RELOADING"] == "1"
    assert before <= int(began["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert listener.next() == {"READY": "1"}


async def test_a_server_whose_store_does_not_answer_is_not_said_to_be_well(
    settings: Settings, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(create_app(settings, engine=False))
    await server.start(manager=manager(listener, WATCHDOG_USEC="60000"))
    message = await asyncio.to_thread(listener.until, "WATCHDOG")
    assert message["STATUS"] == "0 running, 0 waiting"

    async def load() -> None:
        raise Unavailable("the database does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(server.app[SERVICE], "load", load)
        assert await asyncio.to_thread(listener.is_silent, 0.2)
    await asyncio.to_thread(listener.until, "WATCHDOG")
    await server.stop()


# -- a stop that waits --------------------------------------------------------------------------


async def until_it_drains(server: Server, listener: Listener) -> None:
    """Tell it to stop; it serves meanwhile, and systemd is asked for as much time."""
    os.kill(os.getpid(), signal.SIGTERM)
    message = await asyncio.to_thread(listener.until, "EXTEND_TIMEOUT_USEC")
    assert int(message["EXTEND_TIMEOUT_USEC"]) > 30e6
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/healthz") as response:
        assert (response.status, response.headers.get("Connection")) == (200, None)


async def draining(settings: Settings, listener: Listener, drain: float = 30) -> Server:
    """A server that a running analysis holds up for ever."""
    server = Server(create_app(settings, engine=False))
    server.app[SWITCH].drain = asyncio.Event().wait
    await server.start(manager=manager(listener), drain=drain)
    return server


async def test_a_stop_waits_for_analyses_until_somebody_is_in_a_hurry(
    settings: Settings, listener: Listener
) -> None:
    server = await draining(settings, listener)
    await until_it_drains(server, listener)
    os.kill(os.getpid(), signal.SIGTERM)
    await server.ended()
    assert await asyncio.to_thread(listener.until, "STOPPING")


async def test_a_stop_waits_until_the_last_has_ended(
    settings: Settings, listener: Listener
) -> None:
    server = await draining(settings, listener)
    last = asyncio.Event()
    server.app[SWITCH].drain = last.wait
    await until_it_drains(server, listener)
    last.set()
    await server.ended()


async def test_a_stop_waits_no_longer_than_it_is_told(
    settings: Settings, listener: Listener
) -> None:
    server = await draining(settings, listener, drain=0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await server.ended()


# -- sockets ------------------------------------------------------------------------------------


def test_sockets_for_another_process_are_left_alone() -> None:
    assert passed_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert passed_sockets({"LISTEN_PID": MINE, "LISTEN_FDS": "no"}) == []


async def test_without_a_token_a_passed_socket_for_everybody_is_refused(settings: Settings) -> None:
    open_to_all = replace(settings, cuckoo=CuckooSection(machinery=(), freespace=0))
    with closing(listening("0.0.0.0")) as passed, pytest.raises(ConfigError, match=r"'0\.0\.0\.0'"):
        await Server(create_app(open_to_all, engine=False)).start(sockets=[passed])


@pytest.fixture
def real_cwd(cwd: Path) -> Path:
    init_cwd(cwd, [])
    (cwd / "conf" / "cuckoo.conf").write_text("[cuckoo]\nmachinery =\nfreespace = 0\n")
    return cwd


def test_what_is_no_listening_socket_is_refused_in_one_line(real_cwd: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Service(real_cwd, "api", "--no-engine", sockets=[theirs]) as service:
        assert service.launch().wait(PATIENCE) == 2
        assert service.log == "cuckoo: LISTEN_FDS: descriptor 3 is no socket that listens\n"


def test_the_life_of_a_service_and_restarts_under_load_that_no_client_sees(real_cwd: Path) -> None:
    path = real_cwd / "api.sock"
    tcp, unix = listening("127.0.0.1"), listening(path)
    url = f"http://127.0.0.1:{tcp.getsockname()[1]} and unix:{path}"
    probes = [
        Probe(tcp.family, tcp.getsockname(), keep_alive=True),
        Probe(tcp.family, tcp.getsockname(), keep_alive=False),
        Probe(unix.family, str(path), keep_alive=True),
    ]  # fmt: skip
    service = Service(real_cwd, "api", "--no-engine", sockets=[tcp, unix], watchdog=60)
    with tcp, unix, service:
        assert service.start() == {"READY": "1", "STATUS": f"listens on {url}"}
        assert service.listener.until("WATCHDOG")["STATUS"] == "0 running, 0 waiting"
        service.signal(signal.SIGHUP)
        assert int(service.listener.until("RELOADING")["MONOTONIC_USEC"]) > 0
        assert service.listener.until("READY") == {"READY": "1"}
        with probes[0].at_work(8), probes[1].at_work(4), probes[2].at_work(4):
            for _ in range(2):
                for probe in probes:
                    probe.wait_for(20)
                assert service.stop() == 0
                assert "STOPPING" in service.listener.until("STOPPING")
                service.start()
            for probe in probes:
                probe.wait_for(20)
        for probe in probes:
            assert set(probe.answers) == {"200"}
        assert path.exists()  # it is not the server's
        assert service.stop() == 0


def test_an_engine_answers_on_a_socket_in_its_directory(real_cwd: Path) -> None:
    path = real_cwd / "engine.sock"
    with Service(real_cwd, "engine", "--drain", "5", sockets=[]) as service:
        assert service.start()["STATUS"] == f"listens on unix:{path}"
        probe = Probe(socket.AF_UNIX, str(path), keep_alive=True)
        with probe.at_work(1):
            probe.wait_for(1)
        assert set(probe.answers) == {"200"}
        assert service.stop() == 0  # nothing runs: there is nothing to wait for
        assert not path.exists()


def test_systemds_own_activation(real_cwd: Path) -> None:
    path = real_cwd / "activated.sock"
    cuckoo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(real_cwd), "api", "--no-engine"]
    with (real_cwd / "server.log").open("wb") as log:
        started = subprocess.Popen(
            ["systemd-socket-activate", "-l", str(path), "-E", "PYTHONPATH", *cuckoo],
            stdout=log, stderr=log,
        )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        while client.connect_ex(str(path)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    started.send_signal(signal.SIGTERM)
    assert started.wait(PATIENCE) == 0
