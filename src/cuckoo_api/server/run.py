"""Serve an application until somebody stops it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import structlog
from aiohttp import web

from cuckoo_api.http.keys import SETTINGS, SWITCH, Switch
from cuckoo_api.http.protocol import Runner
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings.load import is_loopback

log = structlog.get_logger()

DRAIN = 1.0
"""Seconds in which connections that are kept alive are told to come again elsewhere."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(
    app: web.Application,
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    unix_socket: Path | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``/exit``; then answer what is under way, and close.

    Port 0 takes a free one. ``on_ready`` is called with the URL that is really served, once
    everything is open. With ``unix_socket`` nothing listens on TCP. Raises ConfigError where the
    settings, the address or another server forbid it; nothing is then left open.
    """
    if unix_socket is None:
        check_bind(host, asks_for_token=app[SETTINGS].asks_for_token)
    stopped = asyncio.Event()
    switch = app[SWITCH]
    switch.stop = stopped.set
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    # from the beginning: unhandled, it would end the process
    loop.add_signal_handler(signal.SIGHUP, _reload, switch)
    runner = Runner(app)
    ours: Path | None = None
    try:
        await runner.setup()
        url = await _listen(runner, host, port, unix_socket)
        ours = unix_socket  # not before: what could not be bound may be somebody's file
        log.info("server.ready", url=url)
        if on_ready is not None:
            on_ready(url)
        await stopped.wait()
        log.info("server.stopping")
        switch.draining = True
        await runner.shutdown()  # answers without an end come to theirs
        await _drain(runner)
    finally:
        await runner.cleanup()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        loop.remove_signal_handler(signal.SIGHUP)
        if ours is not None:
            ours.unlink(missing_ok=True)
    log.info("server.stopped")


def check_bind(host: str, *, asks_for_token: bool) -> None:
    """Without a token nobody but this machine may connect; ConfigError in one line."""
    if not asks_for_token and not is_loopback(host):
        fault = (
            f"refusing to listen on {host!r} without authentication: set [cuckoo] api_token in "
            "conf/cuckoo.conf, or listen on 127.0.0.1"
        )
        raise ConfigError([fault])


async def _listen(runner: Runner, host: str, port: int, unix_socket: Path | None) -> str:
    site: web.BaseSite
    if unix_socket is not None:
        site = web.UnixSite(runner, unix_socket)
    else:
        site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as exc:
        where = unix_socket or f"{host}:{port}"
        raise ConfigError([f"cannot listen on {where}: {exc.strerror or exc}"]) from exc
    if unix_socket is not None:
        return f"unix:{unix_socket}"
    address = runner.addresses[0]
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{shown}:{address[1]}"


def _reload(switch: Switch) -> None:
    if switch.reload is not None:
        switch.reload()


async def _drain(runner: Runner) -> None:
    """Take no new connection; let those that are kept alive ask once more, and close them."""
    for site in runner.sites:
        await site.stop()
    try:
        async with asyncio.timeout(DRAIN):
            await runner.wait_idle()
    except TimeoutError:
        pass  # idle ones are simply closed
