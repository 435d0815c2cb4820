"""Serve an application until somebody stops it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web

from cuckoo_api.http.keys import SERVICE, SETTINGS, SWITCH, Switch
from cuckoo_api.http.protocol import Runner
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.model.task import Status
from cuckoo_api.server.systemd import Manager
from cuckoo_api.settings.load import is_loopback

log = structlog.get_logger()

DRAIN = 1.0
"""Seconds in which connections that are kept alive are told to come again elsewhere."""
STOPPING = 60.0
"""Seconds for all the rest of a stop: answers, machines that are switched off."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(
    app: web.Application,
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    unix_socket: Path | None = None,
    sockets: Sequence[socket.socket] = (),
    manager: Manager | None = None,
    drain: float = 0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``/exit``; then answer what is under way, and close.

    Port 0 takes a free one. ``on_ready`` is called with the URL that is really served, once
    everything is open. With ``unix_socket`` nothing listens on TCP. With ``sockets``, which listen
    already and belong to ``manager``, nothing else is listened on, and what comes while no process
    accepts waits for the next one. A stop waits ``drain`` seconds at most for running analyses, and
    serves meanwhile; a second signal ends the wait.

    Raises ConfigError where the settings, the address or another server forbid it; nothing is then
    left open.
    """
    _check_where(app, host, unix_socket, sockets)
    manager = manager or Manager({})
    stopped = asyncio.Event()
    switch = app[SWITCH]
    switch.stop = stopped.set
    switch.reloading = manager.reloading
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    # from the beginning: unhandled, it would end the process
    loop.add_signal_handler(signal.SIGHUP, _reload, switch)
    runner = Runner(app)
    ours: Path | None = None
    try:
        await runner.setup()
        sites = _sites(runner, host, port, unix_socket, sockets)
        url = await _listen(runner, sites)
        if not sockets:
            ours = unix_socket  # not before: what could not be bound may be somebody's file
        log.info("server.ready", url=url)
        manager.tell(READY=1, STATUS=f"listens on {url}")
        if on_ready is not None:
            on_ready(url)
        async with _telling(app, manager):
            await stopped.wait()
            if drain and switch.drain is not None:
                stopped.clear()
                await _drain_analyses(switch.drain, drain, stopped, manager)
        log.info("server.stopping")
        manager.tell(STOPPING=1, STATUS="answers what is under way")
        switch.draining = True
        await _accept_no_more(sites)
        await runner.shutdown()  # answers without an end come to theirs
        await finish_connections(runner)
    finally:
        await runner.cleanup()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        loop.remove_signal_handler(signal.SIGHUP)
        if ours is not None:
            ours.unlink(missing_ok=True)
    log.info("server.stopped")


def _check_where(
    app: web.Application,
    host: str,
    unix_socket: Path | None,
    sockets: Sequence[socket.socket],
) -> None:
    asks_for_token = app[SETTINGS].asks_for_token
    if sockets:
        for one in sockets:
            if one.family != socket.AF_UNIX:
                check_bind(one.getsockname()[0], asks_for_token=asks_for_token)
    elif unix_socket is None:
        check_bind(host, asks_for_token=asks_for_token)


def check_bind(host: str, *, asks_for_token: bool) -> None:
    """Without a token nobody but this machine may connect; ConfigError in one line."""
    if not asks_for_token and not is_loopback(host):
        fault = (
            f"refusing to listen on {host!r} without authentication: set [cuckoo] api_token in "
            "conf/cuckoo.conf, or listen on 127.0.0.1"
        )
        raise ConfigError([fault])


class _Site(web.BaseSite):
    """A place to listen at, known by a name and by its sockets."""

    where = ""

    def accept_no_more(self) -> None:
        """Leave who knocks from now on to another process, or to nobody."""
        loop = asyncio.get_running_loop()
        if isinstance(self._server, asyncio.Server):
            for listening in self._server.sockets:
                loop.remove_reader(listening.fileno())


class _TcpSite(_Site, web.TCPSite):
    pass


class _UnixSite(_Site, web.UnixSite):
    pass


class _PassedSite(_Site, web.SockSite):
    pass


def _sites(
    runner: Runner,
    host: str,
    port: int,
    unix_socket: Path | None,
    sockets: Sequence[socket.socket],
) -> list[_Site]:
    sites: list[_Site]
    if sockets:
        sites = [_PassedSite(runner, one) for one in sockets]
        for site, one in zip(sites, sockets, strict=True):
            site.where = _shown(one.getsockname())
    elif unix_socket is not None:
        sites = [_UnixSite(runner, unix_socket)]
        sites[0].where = str(unix_socket)
    else:
        sites = [_TcpSite(runner, host, port)]
        sites[0].where = f"{host}:{port}"
    return sites


async def _listen(runner: Runner, sites: Sequence[_Site]) -> str:
    """Listen everywhere; the URLs that are really served."""
    for site in sites:
        try:
            await site.start()
        except OSError as exc:
            fault = f"cannot listen on {site.where}: {exc.strerror or exc}"
            raise ConfigError([fault]) from exc
    # of a name with several addresses the first
    shown = runner.addresses if len(sites) > 1 else runner.addresses[:1]
    return " and ".join(map(_shown, shown))


def _shown(address: object) -> str:
    """The URL of a socket's own address."""
    if not isinstance(address, tuple):
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


@asynccontextmanager
async def _telling(app: web.Application, manager: Manager) -> AsyncIterator[None]:
    """While entered, the manager hears how the server is."""

    async def look() -> str:
        tasks = (await app[SERVICE].load()).tasks  # the store has answered
        running, waiting = tasks.get(Status.RUNNING, 0), tasks.get(Status.PENDING, 0)
        return f"{running} running, {waiting} waiting"

    telling = asyncio.create_task(manager.keep_told(look), name="watchdog")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait({telling})


def _reload(switch: Switch) -> None:
    if switch.reload is not None:
        switch.reload()


async def _drain_analyses(
    drain: Callable[[], Awaitable[None]], limit: float, hurry: asyncio.Event, manager: Manager
) -> None:
    """Wait until no analysis runs, the time is over, or somebody is in a hurry."""
    log.info("server.draining", limit=limit)
    manager.tell(EXTEND_TIMEOUT_USEC=int((limit + STOPPING) * 1e6))
    waits = {asyncio.ensure_future(drain()), asyncio.create_task(hurry.wait())}
    await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)


async def _accept_no_more(sites: Sequence[_Site]) -> None:
    """Take no new connection; those that were taken in this moment are served."""
    for site in sites:
        site.accept_no_more()
    await asyncio.sleep(0)  # closed at once, asyncio would drop them


async def finish_connections(runner: Runner) -> None:
    """Let connections that are kept alive ask once more, and close them."""
    for site in runner.sites:
        await site.stop()
    try:
        async with asyncio.timeout(DRAIN):
            await runner.wait_idle()
    except TimeoutError:
        pass  # idle ones are simply closed
