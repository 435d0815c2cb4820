"""One connection to libvirt, with threads of its own, made again after it was lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import libvirt

from cuckoo_api.machinery import BackendUnavailable, MachineryError, OperationTimedOut
from cuckoo_machinery_libvirt.errors import Uri, not_connected, translated
from cuckoo_machinery_libvirt.events import run_events
from cuckoo_machinery_libvirt.threads import Threads, ended, tell

T = TypeVar("T")
Ask = Callable[[libvirt.virConnect], T]
OnEvent = Callable[[str, int, int], None]

SIZE = 4
"""Calls at once on a connection. libvirtd by default serves five, and with more to do it does not
answer keepalives either."""
KEEPALIVE = (3, 2)
"""Seconds between questions, and how many in a row a daemon may leave open."""
PATIENCE = 3.0
"""Seconds that calls give a lost connection to come back: a libvirtd that is restarted takes one
or two. And what an attempt to connect may take."""
PAUSE = 0.1
"""Seconds between two attempts to connect."""
CLOSE_TIMEOUT = 2.0
_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "the connection broke",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "the daemon closed the connection",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the daemon does not answer any more",
}


@dataclass(eq=False)
class Live:
    """A connection that was made."""

    connection: libvirt.virConnect
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is lost."""
    why: str = ""
    lost_at: float = 0
    """When that was, by the event loop's clock."""
    events: int | None = None
    """libvirt's number for the subscription, None where the hypervisor reports no changes."""

    def lose(self, why: str) -> None:
        """It is lost; only the first reason counts."""
        if not self.gone.is_set():
            self.why, self.lost_at = why, asyncio.get_running_loop().time()
            self.gone.set()


class Link:
    """A connection to a URI. Used from the event loop, which it never blocks.

    A thread cannot be stopped: a call that was given up occupies one of the link's few until
    libvirt returns, at the latest when keepalives have found the connection dead.
    """

    def __init__(self, uri: Uri, name: str, on_event: OnEvent | None = None) -> None:
        """``on_event`` gets label, event and detail of each lifecycle event, in the event loop."""
        self.uri = uri
        self._name = f"libvirt-{name}"
        self._on_event = on_event
        self._threads = Threads(self._name, SIZE)
        self._opening: asyncio.Task[Live] | None = None
        self._live: Live | None = None
        self._closed = False

    async def connect(self, seconds: float) -> Live:
        """The connection, made if there is none; one attempt at a time, whoever waits for it.

        Raises BackendUnavailable, or BadConfig for a URI that can never work.
        """
        if self._closed:
            raise self._unavailable("closed")
        if self._live is not None and not self._live.gone.is_set():
            return self._live
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(self._live))
            self._opening.add_done_callback(_look_away)
        opening = self._opening
        await asyncio.wait({opening}, timeout=seconds)
        if not opening.done():
            raise self._unavailable(f"no answer within {seconds:.0f} s")
        if opening.cancelled():
            raise self._unavailable("closed")
        return opening.result()

    async def call(self, about: str, ask: Ask[T], seconds: float) -> T:
        """What ``ask`` answers, called in a thread with the connection; within ``seconds``.

        Raises what :func:`translated` makes of libvirt's error, BackendUnavailable where there
        is no connection, OperationTimedOut.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        future = await self.submit(about, ask)
        return await self.result(about, future, deadline)

    async def submit(self, about: str, ask: Ask[T]) -> Future[T]:
        """Have ``ask`` called, for :meth:`result`. A lost connection gets a moment to return."""
        live = await self._ready()
        loop = asyncio.get_running_loop()

        def work() -> T:
            try:
                return ask(live.connection)
            except libvirt.libvirtError as exc:
                error = translated(exc, self.uri, about, alive=_alive(live.connection))
                if isinstance(error, BackendUnavailable):
                    tell(loop, live.lose, str(error))  # libvirt does as well, a moment later
                raise error from exc
            except OSError as exc:  # a file of ours
                raise MachineryError(f"{about}: {exc}") from exc

        return self._threads.submit(work)

    async def result(self, about: str, future: Future[T], deadline: float) -> T:
        """Wait for what was submitted. Cancelled, it leaves a call that has begun to itself."""
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.wrap_future(future)
        except TimeoutError as exc:
            raise OperationTimedOut(f"{about}: libvirt has not done it in time") from exc

    async def close(self) -> None:
        """Let go of the connection and the threads. Raises nothing."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        live, self._live = self._live, None
        if live is not None:
            live.lose("closed")
            await ended(self._threads.submit(lambda: _disconnect(live)), CLOSE_TIMEOUT)
        self._threads.close()

    def _unavailable(self, why: str) -> BackendUnavailable:
        return BackendUnavailable(f"libvirt at {self.uri.shown}: {why}")

    async def _ready(self) -> Live:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await self.connect(PATIENCE)
            except BackendUnavailable:
                lost_at = self._live.lost_at if self._live is not None else 0
                if self._closed or loop.time() > lost_at + PATIENCE:
                    raise
                await asyncio.sleep(PAUSE)

    async def _open(self, old: Live | None) -> Live:
        run_events()
        loop = asyncio.get_running_loop()

        def work() -> Live:
            if old is not None:
                _disconnect(old)
            try:
                live = self._connect(loop)
            except libvirt.libvirtError as exc:
                raise not_connected(exc, self.uri) from exc
            if self._closed:
                _disconnect(live)
            return live

        # not one of the link's own: against a daemon that hangs, this one may never end
        opener = Threads(f"{self._name}-open", 1)
        try:
            self._live = await asyncio.wrap_future(opener.submit(work))
        finally:
            opener.close()
        return self._live

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Live:
        connection = libvirt.open(self.uri.text)
        live = Live(connection)

        def on_close(_connection: object, reason: int, _opaque: object) -> None:
            tell(loop, live.lose, _REASONS.get(reason, "the connection was closed"))

        def on_event(
            _connection: object, domain: libvirt.virDomain, event: int, detail: int, _: object
        ) -> None:
            if self._on_event is not None:
                tell(loop, self._on_event, domain.name(), event, detail)

        try:
            with contextlib.suppress(libvirt.libvirtError):  # a driver without a daemon has none
                connection.setKeepAlive(*KEEPALIVE)
                connection.registerCloseCallback(on_close, None)
            if self._on_event is not None:
                live.events = _subscribe(connection, on_event)
        except BaseException:
            _disconnect(live)
            raise
        return live


def _subscribe(connection: libvirt.virConnect, on_event: Callable[..., None]) -> int | None:
    kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
    try:
        number: int = connection.domainEventRegisterAny(None, kind, on_event, None)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return None
    return number


def _disconnect(live: Live) -> None:
    """Close a connection. Its callbacks hold it, so they go first; one that is dead complains."""
    connection = live.connection
    if live.events is not None:
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(live.events)
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _look_away(task: asyncio.Task[Live]) -> None:
    """An attempt that failed when nobody waited any more is no news."""
    if not task.cancelled():
        task.exception()
