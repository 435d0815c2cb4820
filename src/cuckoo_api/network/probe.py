"""Does something answer through an interface? Bound to it, whatever the routing tables say."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import struct
from dataclasses import dataclass

TIMEOUT = 3.0
"""Seconds for one probe."""
MAX_ANSWER = 4096
_IPV4 = re.compile(rb"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_ECHO = 8
NOBODY = ("192.0.2.1", "198.51.100.1", "203.0.113.1")
"""Addresses that nobody has (RFC 5737)."""
_DISCARD = 9


@dataclass(frozen=True, slots=True)
class Probe:
    """What to ask: an echo (port 0), a TCP connection, or a page at ``path``."""

    host: str
    port: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Whether it answered; ``address`` is the one that a page said it saw."""

    answered: bool
    address: str = ""
    error: str = ""


def parse(text: str) -> Probe:
    """A probe from ``host``, ``host:port`` or ``http://host[:port]/path``."""
    path = ""
    if text.startswith("http://"):
        text, _, path = text.removeprefix("http://").partition("/")
        path = f"/{path}"
    host, _, port = text.partition(":")
    return Probe(host, int(port) if port.isdecimal() else (80 if path else 0), path)


async def ask(probe: Probe, interface: str) -> Reply:
    """Ask once. Raises nothing: what went wrong stands in the reply."""
    try:
        async with asyncio.timeout(TIMEOUT):
            if not probe.port:
                return await _echo(probe.host, interface)
            return await _connect(probe, interface)
    except TimeoutError:
        return Reply(False, error=f"{probe.host} did not answer in {TIMEOUT:.0f} s")
    except OSError as exc:
        return Reply(False, error=f"{probe.host}: {exc.strerror or exc}")


def nudge(address: str, interface: str) -> None:
    """Send an empty datagram into a tunnel, so that its peer has something to answer.

    It may take one hop: the peer, which forwards it to nobody and says so by ICMP. WireGuard also
    acknowledges it within ten seconds by itself. Raises nothing: what does not come back tells.
    """
    try:
        with _bound(socket.SOCK_DGRAM, 0, interface) as datagram:
            datagram.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            datagram.sendto(b"", (address, _DISCARD))
    except OSError:
        pass


async def _connect(probe: Probe, interface: str) -> Reply:
    loop = asyncio.get_running_loop()
    with _bound(socket.SOCK_STREAM, 0, interface) as connection:
        await loop.sock_connect(connection, (probe.host, probe.port))
        if not probe.path:
            return Reply(True)
        request = f"GET {probe.path} HTTP/1.0\r\nHost: {probe.host}\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        answer = b""
        while len(answer) < MAX_ANSWER and (more := await loop.sock_recv(connection, MAX_ANSWER)):
            answer += more
    body = answer.partition(b"\r\n\r\n")[2]
    return Reply(True, address=_address_in(body))


async def _echo(host: str, interface: str) -> Reply:
    """ICMP: where the host lets its accounts ping, else by a raw socket, which root may have."""
    loop = asyncio.get_running_loop()
    try:
        made = _bound(socket.SOCK_DGRAM, socket.IPPROTO_ICMP, interface)
    except PermissionError:
        made = _bound(socket.SOCK_RAW, socket.IPPROTO_ICMP, interface)
    mark = os.urandom(8)
    with made as connection:
        await loop.sock_connect(connection, (host, 0))
        await loop.sock_sendall(connection, echo_request(mark))
        while mark not in await loop.sock_recv(connection, 1024):
            pass  # another program's
    return Reply(True)


def echo_request(payload: bytes) -> bytes:
    """An ICMP echo request with its checksum."""
    head = struct.pack("!BBHHH", _ECHO, 0, 0, 0, 1)
    total = sum(struct.unpack(f"!{len(head + payload) // 2}H", head + payload))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", _ECHO, 0, ~total & 0xFFFF, 0, 1) + payload


def _bound(kind: int, protocol: int, interface: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    except BaseException:
        made.close()
        raise
    return made


def _address_in(body: bytes) -> str:
    """The first address in a page."""
    for found in _IPV4.findall(body):
        try:
            return str(ipaddress.IPv4Address(found.decode()))
        except ValueError:
            continue
    return ""
