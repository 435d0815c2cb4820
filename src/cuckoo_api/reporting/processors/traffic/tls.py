"""What both sides of a TLS connection say before they begin to encrypt."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cuckoo_api.reporting.bounds import clip, printable
from cuckoo_api.reporting.processors.traffic.fingerprints import ja3, ja3s, ja4

MAX_HELLO = 32 << 10
MAX_EXTENSIONS = 256
_HANDSHAKE, _CLIENT_HELLO, _SERVER_HELLO = 22, 1, 2
SERVER_NAME, GROUPS, POINTS, SIGNATURES, ALPN, VERSIONS = 0, 10, 11, 13, 16, 43
_NAMES = {0x300: "SSLv3", 0x301: "TLS 1.0", 0x302: "TLS 1.1", 0x303: "TLS 1.2", 0x304: "TLS 1.3"}


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client offers, or what a server has chosen of it."""

    version: int
    """The field of that name; newer versions hide in an extension."""
    ciphers: tuple[int, ...]
    extensions: tuple[tuple[int, bytes], ...]

    def numbers(self, kind: int, skip: int = 2) -> list[int]:
        """An extension that is a list of 16-bit numbers behind its length; empty without it."""
        data = dict(self.extensions).get(kind, b"")[skip:]
        return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data) - 1, 2)]

    @property
    def sni(self) -> str:
        """The server that is asked for; empty when none is named."""
        data = dict(self.extensions).get(SERVER_NAME, b"")
        return clip(printable(data[5 : 5 + int.from_bytes(data[3:5])]), 255).lower()

    @property
    def alpn(self) -> list[bytes]:
        """The protocols that are offered inside."""
        data = dict(self.extensions).get(ALPN, b"")[2:]
        names: list[bytes] = []
        while data and len(names) < 16:
            names.append(data[1 : 1 + data[0]])
            data = data[1 + data[0] :]
        return names

    @property
    def highest(self) -> int:
        """The newest version that a client offers."""
        return max([self.version, *(n for n in self.numbers(VERSIONS, skip=1) if n in _NAMES)])


class TlsDialogue:
    """Waits for both hellos; the rest is encrypted and of no interest."""

    def __init__(self, said: Callable[[dict[str, Any]], None]) -> None:
        """``said`` gets the report's view of the client's hello; the server's is added later."""
        self._said = said
        self._entry: dict[str, Any] | None = None
        self._client = _First(_CLIENT_HELLO)
        self._server = _First(_SERVER_HELLO)

    def request(self, data: bytes) -> None:
        hello = self._client.feed(data)
        if hello is not None:
            self._entry = {
                "sni": hello.sni,
                "version": _NAMES.get(hello.highest, hex(hello.highest)),
                "alpn": [printable(name) for name in hello.alpn],
                "ja3": ja3(hello.version, hello.ciphers, _kinds(hello), hello.numbers(GROUPS),
                           list(dict(hello.extensions).get(POINTS, b"")[1:])),
                "ja4": ja4(hello.highest, hello.ciphers, _kinds(hello),
                           hello.numbers(SIGNATURES), hello.alpn),
                "chosen": None,
                "ja3s": None,
            }  # fmt: skip
            self._said(self._entry)

    def response(self, data: bytes) -> None:
        hello = self._server.feed(data)
        if hello is not None and self._entry is not None:
            # a server names the one version that it chose, without a length before it
            version = next(iter(hello.numbers(VERSIONS, skip=0)), hello.version)
            self._entry["chosen"] = _NAMES.get(version, hex(version))
            self._entry["ja3s"] = ja3s(hello.version, hello.ciphers, _kinds(hello))


class _First:
    """The first message of one side, when it is the one that is hoped for."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._buffer = b""
        self._done = False

    def feed(self, data: bytes) -> Hello | None:
        """Take the next bytes; the hello when it is whole, once."""
        if self._done:
            return None
        self._buffer += data
        message = _handshake(self._buffer, self._kind)
        if message is None and len(self._buffer) <= MAX_HELLO:
            return None
        self._done, self._buffer = True, b""
        return None if message is None else parse_hello(message, server=self._kind != _CLIENT_HELLO)


def _handshake(data: bytes, kind: int) -> bytes | None:
    """The first handshake message's body, out of its records; None when more is needed."""
    body = b""
    while len(data) >= 5:
        length = int.from_bytes(data[3:5])
        if data[0] != _HANDSHAKE:
            return b""
        body += data[5 : 5 + length]
        data = data[5 + length :]
        if len(body) >= 4 and len(body) >= 4 + int.from_bytes(body[1:4]):
            return body[4 : 4 + int.from_bytes(body[1:4])] if body[0] == kind else b""
    return None


def parse_hello(body: bytes, *, server: bool) -> Hello | None:
    """Parse a ClientHello or a ServerHello; None when it is none."""
    try:
        version = int.from_bytes(body[0:2])
        at = 35 + body[34]  # behind the random bytes and the session
        if server:
            ciphers = struct.unpack_from(">H", body, at)
            at += 3
        else:
            (size,) = struct.unpack_from(">H", body, at)
            ciphers = struct.unpack_from(f">{size // 2}H", body, at + 2)
            at += 2 + size
            at += 1 + body[at]
    except (IndexError, struct.error):
        return None
    return Hello(version, ciphers, tuple(_extensions(body[at + 2 :])))


def _extensions(data: bytes) -> Iterator[tuple[int, bytes]]:
    for _ in range(MAX_EXTENSIONS):
        if len(data) < 4:
            return
        kind, length = struct.unpack_from(">HH", data)
        yield kind, data[4 : 4 + length]
        data = data[4 + length :]


def _kinds(hello: Hello) -> list[int]:
    return [kind for kind, _ in hello.extensions]
