"""Taps from the rooter, for a backend that runs guests itself and has no right to make any.

Each has a connection of its own, by a plain socket, for asyncio's streams cannot take a descriptor
from one. When the connection ends, however it ends, the rooter takes the tap away.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec

from cuckoo_api.descriptors import received
from cuckoo_api.machinery import BackendUnavailable
from cuckoo_api.network.rooter.client import PATIENCE
from cuckoo_api.network.rooter.commands import (
    MAX_LINE,
    Answer,
    Command,
    Hello,
    Plug,
    Plugged,
    Refused,
    Unplug,
    decode_answer,
    encode,
)
from cuckoo_api.settings import Settings

UNPLUG_PATIENCE = 3.0
"""Seconds: a machine is to be off in ten."""
ADVICE = "start it: systemctl start cuckoo-rooter, or 'cuckoo rooter'"


@dataclass(frozen=True, slots=True)
class RooterTaps:
    """What the rooter's bridges are called, and where to ask for a tap in one."""

    path: Path
    bridges: Mapping[str, IPv4Interface]

    async def ready(self) -> None:
        """Raise BackendUnavailable unless the rooter is there."""
        with await _connect(self.path) as connection:
            await _ask(connection, Hello())

    async def plug(self, bridge: str, guest: str, mac: str) -> RooterTap:
        """Make a tap. Raises BackendUnavailable, with the rooter's own words where it refuses."""
        connection = await _connect(self.path)
        try:
            answer, descriptors = await _ask(connection, Plug(bridge, guest, mac))
        except BaseException:
            connection.close()
            raise
        if isinstance(answer, Plugged) and len(descriptors) == 1:
            return RooterTap(answer.tap, descriptors[0], guest, connection)
        _close(descriptors)
        connection.close()
        said = answer.reason if isinstance(answer, Refused) else "it brought no tap"
        raise BackendUnavailable(f"The rooter does not let {guest} into {bridge}: {said}")


@dataclass(frozen=True, slots=True)
class RooterTap:
    """One that is plugged in."""

    name: str
    descriptor: int
    guest: str
    _connection: socket.socket

    async def unplug(self) -> None:
        """Return once it is away. Raises nothing: where nobody answers it is, or will be."""
        try:
            async with asyncio.timeout(UNPLUG_PATIENCE):
                await _ask(self._connection, Unplug(self.guest))
        except (BackendUnavailable, TimeoutError):
            pass
        finally:
            self._connection.close()


def rooter_taps(settings: Settings) -> RooterTaps | None:
    """The rooter's bridges; None where it makes none."""
    network = settings.network
    return RooterTaps(network.socket, network.rooter.made) if network.rooter.made else None


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(connection, str(path))
    except (OSError, TimeoutError) as exc:
        connection.close()
        raise _unavailable(exc) from exc
    except BaseException:
        connection.close()
        raise
    return connection


async def _ask(connection: socket.socket, command: Command) -> tuple[Answer, list[int]]:
    """The answer, and the descriptors that came with it, which are the caller's."""
    descriptors: list[int] = []
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(connection, encode(command))
            line = await _receive(connection, descriptors)
            while not line.endswith(b"\n"):
                line += await _receive(connection, descriptors)
            return decode_answer(line), descriptors
    except (OSError, TimeoutError, msgspec.MsgspecError) as exc:
        _close(descriptors)
        raise _unavailable(exc) from exc
    except BaseException:
        _close(descriptors)
        raise


async def _receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """Some of a line, and what comes with it. Raises OSError where no more comes."""
    await _readable(connection)
    data, brought = received(connection, MAX_LINE)
    descriptors += brought
    if not data:
        raise ConnectionResetError("it has hung up")
    return data


async def _readable(connection: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()


def _unavailable(exc: Exception) -> BackendUnavailable:
    reason = getattr(exc, "strerror", None) or str(exc) or "it does not answer"
    return BackendUnavailable(f"Rooter not available: {reason}; {ADVICE}")
