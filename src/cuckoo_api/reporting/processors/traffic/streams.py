"""TCP segments put in order, and what the first bytes of a connection say it speaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

MAX_PENDING = 64
_SPACE = 1 << 32
_HALF = 1 << 31
_DETECT = 8

HTTP = re.compile(rb"(?:GET|POST|HEAD|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PROPFIND) ?")
TLS = re.compile(rb"\x16\x03[\x00-\x04]")


class Dialogue(Protocol):
    """What understands both sides of a connection; each side's bytes come in order."""

    def request(self, data: bytes) -> None: ...
    def response(self, data: bytes) -> None: ...


class Budget:
    """Bytes that may wait for a missing segment, all connections together."""

    def __init__(self, size: int) -> None:
        self.left = size


class Direction:
    """One side's segments. What is lost in the capture ends the stream; the first copy wins."""

    def __init__(self, deliver: Callable[[bytes], None], budget: Budget) -> None:
        self._deliver = deliver
        self._budget = budget
        self._next: int | None = None
        self._pending: dict[int, bytes] = {}
        self.closed = False

    def syn(self, sequence: int) -> None:
        """The stream begins after this number."""
        if self._next is None:
            self._next = (sequence + 1) % _SPACE

    def segment(self, sequence: int, data: bytes) -> None:
        """Take a segment; deliver what is now in order."""
        if self.closed or not data:
            return
        if self._next is None:
            self._next = sequence
        if not self._in_order(sequence, data):
            if len(self._pending) >= MAX_PENDING or len(data) > self._budget.left:
                self.close()
            elif sequence not in self._pending:
                self._pending[sequence] = data
                self._budget.left -= len(data)
            return
        waiting = True
        while waiting and self._pending:
            waiting = False
            for number in sorted(self._pending):
                if self._in_order(number, self._pending[number]):
                    self._budget.left += len(self._pending.pop(number))
                    waiting = True

    def close(self) -> None:
        """No more of this side is of interest."""
        self.closed = True
        self._budget.left += sum(map(len, self._pending.values()))
        self._pending.clear()

    def _in_order(self, sequence: int, data: bytes) -> bool:
        """Deliver the part that is new; False when something before it is still missing."""
        expected = self._next or 0
        behind = (expected - sequence) % _SPACE
        if behind >= _HALF:
            return False
        fresh = data[behind:]
        if fresh:
            self._next = (expected + len(fresh)) % _SPACE
            self._deliver(fresh)
        return True


class Connection:
    """Both sides of a TCP connection. ``speaks`` makes a dialogue from the client's first bytes."""

    def __init__(self, speaks: Callable[[bytes], Dialogue | None], budget: Budget) -> None:
        self._speaks = speaks
        self._start = b""
        self._dialogue: Dialogue | None = None
        self.client = Direction(self._from_client, budget)
        self.server = Direction(self._from_server, budget)

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def _from_client(self, data: bytes) -> None:
        if self._dialogue is None:
            self._start += data
            if len(self._start) < _DETECT:
                return
            self._dialogue = self._speaks(self._start)
            data, self._start = self._start, b""
        if self._dialogue is None:
            self.close()
        else:
            self._dialogue.request(data)

    def _from_server(self, data: bytes) -> None:
        if self._dialogue is not None:
            self._dialogue.response(data)
