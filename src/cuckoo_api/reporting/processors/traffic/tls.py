"""The server name that a TLS client asks for, from its first message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from cuckoo_api.reporting.bounds import clip, printable

MAX_HELLO = 16 << 10
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN, _VERSIONS = 0, 16, 43
_NAMES = {0x300: "SSLv3", 0x301: "TLS 1.0", 0x302: "TLS 1.1", 0x303: "TLS 1.2", 0x304: "TLS 1.3"}


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client offers."""

    sni: str
    """Empty when it names no server."""
    version: str
    """The highest offered."""
    alpn: tuple[str, ...]


class TlsDialogue:
    """Waits for the whole ClientHello; the rest is encrypted and of no interest."""

    def __init__(self, said: Callable[[ClientHello], None]) -> None:
        self._said = said
        self._buffer = b""
        self._done = False

    def request(self, data: bytes) -> None:
        if self._done:
            return
        self._buffer += data
        message = _handshake(self._buffer)
        if message is not None:
            self._done, self._buffer = True, b""
            hello = client_hello(message)
            if hello is not None:
                self._said(hello)
        elif len(self._buffer) > MAX_HELLO:
            self._done, self._buffer = True, b""

    def response(self, data: bytes) -> None:
        """Nothing in it is needed."""


def _handshake(data: bytes) -> bytes | None:
    """The first handshake message's body, out of its records; None when more is needed."""
    body = b""
    while len(data) >= 5:
        length = int.from_bytes(data[3:5])
        if data[0] != _HANDSHAKE:
            return b""
        body += data[5 : 5 + length]
        data = data[5 + length :]
        if len(body) >= 4 and len(body) >= 4 + int.from_bytes(body[1:4]):
            return body[4:] if body[0] == _CLIENT_HELLO else b""
    return None


def client_hello(body: bytes) -> ClientHello | None:
    """Parse a ClientHello; None when it is none."""
    try:
        version = int.from_bytes(body[0:2])
        at = 34
        at += 1 + body[at]
        at += 2 + struct.unpack_from(">H", body, at)[0]
        at += 1 + body[at]
        extensions = body[at + 2 :]
    except (IndexError, struct.error):
        return None
    sni = ""
    alpn: tuple[str, ...] = ()
    while len(extensions) >= 4:
        kind, length = struct.unpack_from(">HH", extensions)
        data, extensions = extensions[4 : 4 + length], extensions[4 + length :]
        if kind == _SERVER_NAME:
            sni = clip(printable(data[5 : 5 + int.from_bytes(data[3:5])]), 255).lower()
        elif kind == _ALPN:
            alpn = _protocols(data[2:])
        elif kind == _VERSIONS:
            offered = [int.from_bytes(data[i : i + 2]) for i in range(1, len(data) - 1, 2)]
            version = max([version, *(item for item in offered if item in _NAMES)])
    return ClientHello(sni, _NAMES.get(version, hex(version)), alpn)


def _protocols(data: bytes) -> tuple[str, ...]:
    names: list[str] = []
    while data and len(names) < 16:
        names.append(printable(data[1 : 1 + data[0]]))
        data = data[1 + data[0] :]
    return tuple(names)
