"""What systemd and a service tell each other: listening sockets, and word of how the service is.

The protocols are those of sd_listen_fds(3) and sd_notify(3). Without systemd nothing is said.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager

import structlog

from cuckoo_api.model.errors import ConfigError, CuckooError

log = structlog.get_logger()

FIRST = 3
"""The descriptor of the first socket that is passed."""
PERIOD = 10.0
"""Seconds between two words about the service at most."""


class Manager:
    """Who started this process and wants to know how it is; without one, nobody."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Take what is meant for this process out of the environment: children have no part in it.

        A word for another process is left alone.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        pid, usec = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        is_watched = usec.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog = int(usec) / 1e6 if is_watched else 0.0
        """Seconds after which it ends a process of which it has heard nothing; 0: never."""

    def tell(self, **values: object) -> None:
        """Send variables of sd_notify(3). What cannot be sent is logged; the service goes on."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in values.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as hand:
                hand.sendto(message.encode(), self._address)
        except OSError as exc:
            log.warning("systemd.not_told", reason=exc.strerror or str(exc))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """While entered, the configuration is read anew."""
        self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            yield
        finally:
            self.tell(READY=1)

    async def keep_told(self, look: Callable[[], Awaitable[str]]) -> None:
        """Say every few seconds that all is well, and what ``look`` answers; never returns.

        Where the event loop or ``look`` hangs, or fails by CuckooError, nothing is said: that is
        how systemd comes to know.
        """
        while self._address:
            try:
                text = await look()
            except CuckooError as exc:
                log.warning("systemd.not_well", reason=exc.log)
            else:
                self.tell(WATCHDOG=1, STATUS=text)
            await asyncio.sleep(min(self.watchdog / 3 or PERIOD, PERIOD))


def passed_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that were opened for this process; not those for another one.

    Raises ConfigError for a descriptor that is none.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_listening(number) for number in range(FIRST, FIRST + int(count))]


def _listening(number: int) -> socket.socket:
    try:
        passed = socket.socket(fileno=number)
    except OSError as exc:
        raise ConfigError([f"LISTEN_FDS: descriptor {number}: {exc.strerror}"]) from exc
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.close()
        raise ConfigError([f"LISTEN_FDS: descriptor {number} is no socket that listens"])
    passed.set_inheritable(False)
    passed.setblocking(False)
    return passed
