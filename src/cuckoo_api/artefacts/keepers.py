"""The processes that look at uploads, and keep the small ones; see ``keeper.py``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from cuckoo_api.artefacts.keep import (
    FAILED,
    HASH,
    KEEP,
    READY,
    SCREEN,
    TYPE,
    Kept,
)
from cuckoo_api.descriptors import received
from cuckoo_api.model.sample import NewSample

log = structlog.get_logger()

COUNT = min(4, os.cpu_count() or 1)
BLOCK = 128 << 10
"""Bytes of the largest file that goes to them."""
READING, WRITING = os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
MAX_ANSWER = 4 << 10
PATIENCE = 5.0
"""Seconds that one gets to end by itself."""
DEADLINE = 120.0
"""Seconds for a file: a parser that does not come back is as bad as one that dies."""


class KeeperDied(Exception):
    """The process ended with this file in its hands, or could not be started."""


class Process(Protocol):
    """What is used of a process."""

    pid: int

    async def wait(self) -> object: ...
    def kill(self) -> None: ...


async def start_process(channel: socket.socket, folder: Path) -> Process:
    """A keeper at the other end of ``channel``. Raises OSError."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cuckoo_api.artefacts.keeper"),
        *(str(channel.fileno()), str(folder), str(BLOCK), str(os.getpid())),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=[channel.fileno()],
        start_new_session=True,  # ^C is for the server, which then closes the channel
    )


class Keepers:
    """None runs until the first upload, then one; from the first crowd on one for each processor
    (four at most)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[_Keeper] = []
        self._wanted = 1
        self._starting: asyncio.Task[None] | None = None

    def need(self) -> None:
        """Start all, if they do not run. They are of use a moment later."""
        self._wanted = COUNT
        self._grow()

    async def ready(self) -> None:
        """Wait until one is of use. Raises KeeperDied where none can be."""
        if any(keeper.ready.done() for keeper in self._all):
            return
        await asyncio.shield(self._grow())
        if not self._all:
            raise KeeperDied
        await asyncio.shield(self._all[0].ready)

    def keep(self, data: bytes) -> asyncio.Future[Kept | str | None]:
        """The sample, durable, or KeeperDied; None where it could not be kept."""
        return self._ask(KEEP + data)

    def file_type(self, path: Path) -> asyncio.Future[Kept | str | None]:
        """libmagic's words for a file, or KeeperDied; None where it has none. Raises OSError."""
        return self._ask(TYPE, (path, READING))

    def fuzzy_hash(self, path: Path) -> asyncio.Future[Kept | str | None]:
        """A file's ssdeep, or KeeperDied; None where it has none. Raises OSError."""
        return self._ask(HASH, (path, READING))

    def screen(self, raw: Path, jpeg: Path, last: Path | None) -> asyncio.Future[Kept | str | None]:
        """What ``screens.look`` says of a screenshot, or KeeperDied. Raises OSError."""
        before = [(last, READING)] if last else []
        return self._ask(SCREEN, (raw, READING), (jpeg, WRITING), *before)

    async def close(self) -> None:
        """Let them end."""
        if self._starting is not None:  # in the middle of it, a process would be left
            await asyncio.wait({self._starting})
        await asyncio.gather(*(keeper.close() for keeper in self._all))

    def _ask(self, message: bytes, *files: tuple[Path, int]) -> asyncio.Future[Kept | str | None]:
        """Have the least busy of those that are ready do it, with these files open."""
        ready = [keeper for keeper in self._all if keeper.ready.done()]
        if not ready:
            raise KeeperDied
        handles: list[int] = []
        try:
            for path, flags in files:
                handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
                handles.append(handle)
        except OSError:
            _close(handles)
            raise
        return min(ready, key=lambda keeper: keeper.load).ask(message, handles)

    def _grow(self) -> asyncio.Task[None]:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
        return self._starting

    async def _start(self) -> None:
        while len(self._all) < self._wanted:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BLOCK)
                try:
                    process = await start_process(theirs, self._folder)
                except OSError as exc:
                    ours.close()
                    log.warning("keeper.not_started", error=str(exc))
                    return
            self._all.append(_Keeper(process, ours, self._gone))

    def _gone(self, keeper: _Keeper) -> None:
        self._all.remove(keeper)  # what is wanted next starts new ones
        log.warning("keeper.died", pid=keeper.pid)


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


class _Order(NamedTuple):
    """What one is asked for, and the open files for it."""

    message: bytes
    handles: list[int]
    done: asyncio.Future[Kept | str | None]


class _Keeper:
    """One process, and what is under way to it and back."""

    def __init__(
        self, process: Process, channel: socket.socket, gone: Callable[[_Keeper], None]
    ) -> None:
        self._process = process
        self._channel = channel
        self._gone = gone
        self._waiting: deque[_Order] = deque()
        self._sent: deque[asyncio.Future[Kept | str | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done once it is of use; KeeperDied where it ended before."""
        channel.setblocking(False)
        self._loop.add_reader(channel, self._receive)

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    @property
    def load(self) -> int:
        """Files that it has in hand."""
        return len(self._waiting) + len(self._sent)

    def ask(self, message: bytes, handles: list[int]) -> asyncio.Future[Kept | str | None]:
        """Takes the handles for its own."""
        done: asyncio.Future[Kept | str | None] = self._loop.create_future()
        late = self._loop.call_later(DEADLINE, self._process.kill)
        done.add_done_callback(lambda _: late.cancel())
        self._waiting.append(_Order(message, handles, done))
        self._send()
        return done

    async def close(self) -> None:
        self._hang_up()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _send(self) -> None:
        while self._waiting:
            message, handles, done = self._waiting[0]
            try:
                socket.send_fds(self._channel, [message], handles)
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._send)
                return
            except OSError:
                self._end()
                return
            self._waiting.popleft()
            self._sent.append(done)
            _close(handles)
        self._loop.remove_writer(self._channel)

    def _receive(self) -> None:
        try:
            answer, handles = received(self._channel, MAX_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            answer, handles = b"", []
        if answer == READY:
            self.ready.set_result(None)
        elif not answer:
            self._end()
        elif (done := self._sent.popleft()).done():  # its client has gone
            _close(handles)
        elif answer == FAILED:
            done.set_result(None)
        elif handles:
            done.set_result(Kept(msgspec.json.decode(answer, type=NewSample), handles[0]))
        else:
            done.set_result(msgspec.json.decode(answer, type=str))

    def _end(self) -> None:
        self._hang_up()
        self._gone(self)

    def _hang_up(self) -> None:
        with contextlib.suppress(ValueError):  # it is closed already
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
        self._channel.close()
        for order in self._waiting:
            _close(order.handles)
        unanswered: list[asyncio.Future[Any]] = [self.ready, *self._sent]
        for future in (*unanswered, *(order.done for order in self._waiting)):
            if not future.done():
                future.set_exception(KeeperDied())
                future.exception()  # nobody may be waiting any more
        self._sent.clear()
        self._waiting.clear()
