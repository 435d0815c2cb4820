"""The processes that keep small uploads when several come at once; see ``keeper.py``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from cuckoo_api.artefacts.keep import FAILED, READY, Kept
from cuckoo_api.model.sample import NewSample

log = structlog.get_logger()

COUNT = min(4, os.cpu_count() or 1)
BLOCK = 128 << 10
"""Bytes of the largest file that goes to them."""
MAX_ANSWER = 4 << 10
PATIENCE = 5.0
"""Seconds that one gets to end by itself."""


class KeeperDied(Exception):
    """The process ended with this file in its hands."""


class Keepers:
    """None runs until uploads come together, then one for each processor (four at most)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[_Keeper] = []
        self._starting: asyncio.Task[None] | None = None

    def need(self) -> None:
        """Start them, if they do not run. They are of use a moment later."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())

    def keep(self, data: bytes) -> asyncio.Future[Kept | None] | None:
        """The sample, durable, or KeeperDied; None where it has to be kept without their help."""
        ready = [keeper for keeper in self._all if keeper.is_ready]
        return min(ready, key=lambda keeper: keeper.load).keep(data) if ready else None

    async def close(self) -> None:
        """Let them end."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await asyncio.gather(*(keeper.close() for keeper in self._all))

    async def _start(self) -> None:
        for _ in range(COUNT):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BLOCK)
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "cuckoo_api.artefacts.keeper"),
                    *(str(theirs.fileno()), str(self._folder), str(BLOCK), str(os.getpid())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # ^C is for the server, which then closes the channel
                )
            self._all.append(_Keeper(process, ours, self._gone))

    def _gone(self, keeper: _Keeper) -> None:
        self._all.remove(keeper)
        log.warning("keeper.died", pid=keeper.pid)
        if not self._all:
            self._starting = None  # the next crowd starts new ones


class _Keeper:
    """One process, and what is under way to it and back."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: socket.socket,
        gone: Callable[[_Keeper], None],
    ) -> None:
        self._process = process
        self._channel = channel
        self._gone = gone
        self._waiting: deque[tuple[bytes, asyncio.Future[Kept | None]]] = deque()
        self._sent: deque[asyncio.Future[Kept | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self.is_ready = False
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

    def keep(self, data: bytes) -> asyncio.Future[Kept | None]:
        done: asyncio.Future[Kept | None] = self._loop.create_future()
        self._waiting.append((data, done))
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
            data, done = self._waiting[0]
            try:
                self._channel.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._send)
                return
            except OSError:
                self._end()
                return
            self._waiting.popleft()
            self._sent.append(done)
        self._loop.remove_writer(self._channel)

    def _receive(self) -> None:
        try:
            answer, handles, _, _ = socket.recv_fds(
                self._channel, MAX_ANSWER, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            answer, handles = b"", []
        if answer == READY:
            self.is_ready = True
        elif not answer:
            self._end()
        elif (done := self._sent.popleft()).done():  # its client has gone
            for handle in handles:
                os.close(handle)
        elif answer == FAILED:
            done.set_result(None)
        else:
            done.set_result(Kept(msgspec.json.decode(answer, type=NewSample), handles[0]))

    def _end(self) -> None:
        self._hang_up()
        self._gone(self)

    def _hang_up(self) -> None:
        self.is_ready = False
        with contextlib.suppress(ValueError):  # it is closed already
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
        self._channel.close()
        for done in (*self._sent, *(done for _, done in self._waiting)):
            if not done.done():
                done.set_exception(KeeperDied())
        self._sent.clear()
        self._waiting.clear()
