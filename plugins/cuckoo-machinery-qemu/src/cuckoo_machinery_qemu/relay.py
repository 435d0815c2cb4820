"""Runs in a fresh network namespace: relays a few ports, then becomes QEMU.

Usage: relay.py PARENT SPEC... -- COMMAND...

PARENT is the server's process id: everything here dies with it. SPEC is one of

  agent=PATH:PORT   listen on the unix socket PATH, connect to 127.0.0.1:PORT in the namespace
  tcp=PATH:PORT     listen on 127.0.0.1:PORT, connect to the unix socket PATH
  udp=PATH:PORT     datagrams to 127.0.0.1:PORT, each passed to PATH with its length before it,
                    as DNS over TCP does, and its answer passed back

Standard library only: it is run as a file, outside every environment. The guest is hostile:
connections are capped, and nothing is held for one that does not read.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import functools
import os
import signal
import socket
import struct
import sys

MAX_CONNECTIONS = 128
MAX_DATAGRAMS = 64
BLOCK = 64 << 10
DATAGRAM_TIMEOUT = 5.0
LOCALHOST = "127.0.0.1"

_PR_SET_PDEATHSIG, _PR_SET_SECUREBITS = 1, 28
_SECBIT_NOROOT_LOCKED = 0b11
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41


def die_with(parent: int) -> None:
    """Be killed when the parent dies, also if it has died by now."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def no_rights_by_exec() -> None:
    """Being root in the namespace gives the program that we become no capability."""
    if ctypes.CDLL(None).prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT_LOCKED, 0, 0, 0):
        os._exit(1)


def loopback_up() -> None:
    """Switch on the namespace's only interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


class Relay:
    """All forwards of one namespace."""

    def __init__(self) -> None:
        self._open = 0
        self._datagrams = 0

    async def pipe_to_port(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """From the server to the guest."""
        await self._join(reader, writer, asyncio.open_connection(LOCALHOST, port))

    async def pipe_to_path(
        self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """From the guest to the server."""
        await self._join(reader, writer, asyncio.open_unix_connection(path))

    async def _join(self, reader, writer, connect) -> None:  # type: ignore[no-untyped-def]  # streams, twice
        if self._open >= MAX_CONNECTIONS:
            connect.close()
            writer.transport.abort()
            return
        self._open += 1
        try:
            far_reader, far_writer = await connect
        except OSError:
            writer.transport.abort()
            self._open -= 1
            return
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            self._open -= 1
            for end in (writer, far_writer):
                end.close()

    async def answer(
        self, question: bytes, reply: asyncio.DatagramTransport, sender: tuple[str, int], path: str
    ) -> None:
        """One datagram, there and back."""
        if self._datagrams >= MAX_DATAGRAMS:
            return
        self._datagrams += 1
        try:
            async with asyncio.timeout(DATAGRAM_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(struct.pack(">H", len(question)) + question)
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    reply.sendto(await reader.readexactly(length), sender)
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError):
            pass  # as a lost datagram
        finally:
            self._datagrams -= 1


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end; the other may go on."""
    try:
        while data := await reader.read(BLOCK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


class Datagrams(asyncio.DatagramProtocol):
    """The udp end of a forward."""

    def __init__(self, relay: Relay, path: str) -> None:
        self._relay = relay
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.ensure_future(
            self._relay.answer(data, self._transport, addr, self._path)  # type: ignore[arg-type]  # a datagram transport
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def listeners(specs: list[str]) -> list[tuple[str, str, int, socket.socket]]:
    """Bind everything now: QEMU is to find the ports there when it starts."""
    bound = []
    for spec in specs:
        kind, _, rest = spec.partition("=")
        path, _, port = rest.rpartition(":")
        if kind == "agent":
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            if os.path.exists(path):  # noqa: PTH110 - pathlib takes 20 ms to import
                os.unlink(path)  # noqa: PTH108 - the same
            listener.bind(path)
            listener.listen()
        elif kind == "tcp":
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind((LOCALHOST, int(port)))
            listener.listen()
        else:
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.bind((LOCALHOST, int(port)))
        listener.setblocking(False)
        bound.append((kind, path, int(port), listener))
    return bound


async def serve(bound: list[tuple[str, str, int, socket.socket]]) -> None:
    """Relay until killed."""
    relay = Relay()
    for kind, path, port, listener in bound:
        if kind == "agent":
            handler = functools.partial(relay.pipe_to_port, port)
            await asyncio.start_unix_server(handler, sock=listener, limit=BLOCK)
        elif kind == "tcp":
            handler = functools.partial(relay.pipe_to_path, path)
            await asyncio.start_server(handler, sock=listener, limit=BLOCK)
        else:
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(
                functools.partial(Datagrams, relay, path), sock=listener
            )
    await asyncio.Event().wait()


def main(words: list[str]) -> None:
    """Bind, leave a relay behind as a child, become QEMU."""
    parent, *specs = words[: words.index("--")]
    command = words[words.index("--") + 1 :]
    die_with(int(parent))
    loopback_up()
    bound = listeners(specs)
    qemu = os.getpid()
    if os.fork() == 0:
        die_with(qemu)
        # QEMU's descriptors are not the relay's
        keep = {listener.fileno() for *_, listener in bound} | {0, 1, 2}
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib takes 20 ms to import
            if int(name) not in keep:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the one that listed the folder
        asyncio.run(serve(bound))
    for *_, listener in bound:
        listener.close()
    die_with(int(parent))
    no_rights_by_exec()
    os.execvp(command[0], command)  # noqa: S606 - words, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
