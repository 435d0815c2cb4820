"""HTTP/1 as it went by: heads are read, bodies are counted and their beginnings kept."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cuckoo_api.reporting.bounds import clip, printable
from cuckoo_api.reporting.processors.traffic.bodies import Bodies, Body

MAX_HEAD = 16 << 10
MAX_HEAD_SHOWN = 4096
MAX_FIELD = 2048
MAX_EXCHANGES = 64
"""Requests of one connection that wait for their response."""

_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,12})[^\n]*\n")
_END = re.compile(rb"\r?\n\r?\n")


class Follows(enum.Enum):
    """What follows a head."""

    NONE = "none"
    """Nothing, whatever the head says."""
    AS_TOLD = "as told"
    """What the head says; nothing when it says nothing."""
    TO_THE_END = "to the end"
    """What the head says; all the rest when it says nothing."""


@dataclass(slots=True)
class Message:
    """A request or a response. ``body_size`` grows while the body goes by."""

    start: list[str]
    headers: dict[str, str]
    head: str
    """As it came."""
    body: Body
    body_size: int = 0


class MessageReader:
    """Reads one side of a connection, message after message."""

    def __init__(self, took: Callable[[Message], Follows], bodies: Bodies) -> None:
        """``took`` is told of each head; it answers what body follows."""
        self._took = took
        self._bodies = bodies
        self._buffer = b""
        self._message: Message | None = None
        self._left: int | None = 0
        self._chunked = False
        self.broken = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        while data and not self.broken:
            message = self._message
            if message is not None and self._left != 0:
                data = self._body(message, data)
                continue
            self._buffer += data
            in_chunks = message is not None and self._chunked
            data = self._chunk() if in_chunks else self._head()
            if not data and len(self._buffer) > MAX_HEAD:
                self.broken = True

    def _body(self, message: Message, data: bytes) -> bytes:
        size = len(data) if self._left is None else min(len(data), self._left)
        message.body_size += size
        message.body.write(data[:size])
        if self._left is not None:
            self._left -= size
            if self._left == 0 and not self._chunked:
                self._message = None
        return data[size:]

    def _chunk(self) -> bytes:
        """Read the size of the next chunk, after the end of the one before."""
        text = self._buffer.lstrip(b"\r\n")
        match = _CHUNK.match(text)
        if match is None:
            self.broken = b"\n" in text
            return b""
        self._buffer = b""
        self._left = int(match[1], 16)
        if self._left == 0:
            self._message, self._chunked = None, False
        return text[match.end() :]

    def _head(self) -> bytes:
        # what stands between messages: the end of the last chunk
        self._buffer = self._buffer.lstrip(b"\r\n")
        end = _END.search(self._buffer)
        if end is None:
            return b""
        head = self._buffer[: end.start()]
        lines = head.splitlines()
        rest, self._buffer = self._buffer[end.end() :], b""
        message = Message(
            printable(lines[0]).split(" ", 2),
            _headers(lines[1:]),
            clip(printable(head), MAX_HEAD_SHOWN),
            self._bodies.begin(),
        )
        follows = self._took(message)
        self._left = 0 if follows is not Follows.TO_THE_END else None
        self._chunked = False
        if follows is not Follows.NONE:
            length = message.headers.get("content-length", "")
            if "chunked" in message.headers.get("transfer-encoding", "").lower():
                self._left, self._chunked = 0, True
            elif length.isascii() and length.isdigit() and len(length) < 16:
                self._left = int(length)
        self._message = message if self._chunked or self._left != 0 else None
        return rest


@dataclass(slots=True)
class Exchange:
    """A request and the response to it, if one came."""

    time: float
    """Seconds since the first packet."""
    request: Message
    response: Message | None = None

    def entry(self, port: int, bodies: Bodies) -> dict[str, Any]:
        """The report's view of it; the connection's ends are added by the caller."""
        method, target, version = (*self.request.start, "", "")[:3]
        headers = self.request.headers
        host = headers.get("host", "")
        if target.startswith("/"):
            shown = host if ":" in host or port == 80 else f"{host}:{port}"
            uri = f"http://{shown}{target}"
        else:
            uri = target
        response = self.response
        status = response.start[1] if response and len(response.start) > 1 else ""
        return {
            "count": 1,
            "time": round(self.time, 6),
            "method": clip(method, 32),
            "uri": clip(uri, MAX_FIELD),
            "host": host.partition(":")[0],
            "port": port,
            "path": clip(target, MAX_FIELD),
            "version": version.removeprefix("HTTP/")[:8],
            "user-agent": headers.get("user-agent", ""),
            "status": int(status) if status.isascii() and status.isdigit() else None,
            "content-type": response.headers.get("content-type", "") if response else "",
            "request_size": self.request.body_size,
            "response_size": response.body_size if response else 0,
            "request": self.request.head,
            "response": response.head if response else "",
            "req": _file(self.request, bodies),
            "resp": _file(response, bodies) if response else None,
        }


class HttpDialogue:
    """Pairs requests and responses in their order."""

    def __init__(
        self, began: Callable[[Exchange], None], clock: Callable[[], float], bodies: Bodies
    ) -> None:
        self._began = began
        self._clock = clock
        self._waiting: list[Exchange] = []
        self._requests = MessageReader(self._asked, bodies)
        self._responses = MessageReader(self._answered, bodies)

    def request(self, data: bytes) -> None:
        self._requests.feed(data)

    def response(self, data: bytes) -> None:
        self._responses.feed(data)

    def _asked(self, message: Message) -> Follows:
        if len(message.start) < 3 or not message.start[2].startswith("HTTP/"):
            self._requests.broken = True
            return Follows.NONE
        exchange = Exchange(self._clock(), message)
        self._began(exchange)
        if len(self._waiting) < MAX_EXCHANGES:
            self._waiting.append(exchange)
        return Follows.AS_TOLD

    def _answered(self, message: Message) -> Follows:
        if not message.start[0].startswith("HTTP/") or len(message.start) < 2:
            self._responses.broken = True
            return Follows.NONE
        status = message.start[1]
        if status.startswith("1") and status != "101":
            return Follows.NONE  # the real one is still to come
        exchange = self._waiting.pop(0) if self._waiting else None
        if exchange is not None:
            exchange.response = message
            if exchange.request.start[0] == "HEAD" or status in ("204", "304"):
                return Follows.NONE
        return Follows.TO_THE_END


def _file(message: Message, bodies: Bodies) -> dict[str, Any] | None:
    return bodies.describe(message.body, message.headers.get("content-encoding", ""))


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines[:100]:
        name, colon, value = line.partition(b":")
        if colon:
            text = clip(printable(value).strip(), MAX_FIELD)
            headers.setdefault(printable(name).strip().lower(), text)
    return headers
