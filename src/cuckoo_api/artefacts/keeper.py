"""A process that keeps small uploads for the server: ``python -m cuckoo_api.artefacts.keeper``.

In the server itself many uploads at a time would be slow: each lets go of the interpreter's lock
and takes it again a score of times, and every time the threads wait for each other.

It speaks over a socket that keeps messages apart. Once it is ready it says so; then each message
is a file's bytes, and is answered in turn with the sample as JSON and an open file whose lock
holds it, or with ``null`` where it could not be kept. It ends when the server does.

The samples have no ssdeep: in a flood it would be a quarter of the work, and who looks at one of
them has it made then.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import msgspec

from cuckoo_api.artefacts.keep import FAILED, READY, FileTypes, Kept, keep, make_durable
from cuckoo_api.confinement import confine
from cuckoo_api.model.errors import CuckooError

MEMORY = 1 << 30
"""Bytes of address space; libmagic's data and what waits take a tenth of it."""
MOST = 16
"""Files that share one sync of the folder."""


def serve(channel: socket.socket, folder: Path, max_size: int) -> None:
    """Keep what comes until the server hangs up."""
    types = FileTypes()
    types.here()
    channel.send(READY)
    while batch := _batch(channel, max_size):
        kept = [_keep(folder, data, types) for data in batch]
        durable = _is_durable(folder, [one.handle for one in kept if one is not None])
        for one in kept:
            if one is not None and durable:
                socket.send_fds(channel, [msgspec.json.encode(one.sample)], [one.handle])
            else:
                channel.send(FAILED)
            if one is not None:
                os.close(one.handle)


def _batch(channel: socket.socket, max_size: int) -> list[bytes]:
    """The files that wait, at least one; none when the server has hung up."""
    batch = [channel.recv(max_size)]
    while batch[-1] and len(batch) < MOST:
        try:
            batch.append(channel.recv(max_size, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return batch
    return [data for data in batch if data]


def _keep(folder: Path, data: bytes, types: FileTypes) -> Kept | None:
    try:
        return keep(folder, data, types.here().from_buffer(data))
    except Exception:  # noqa: BLE001 - the server tries again, and finds the reason for its client
        return None


def _is_durable(folder: Path, handles: list[int]) -> bool:
    try:
        make_durable(folder, handles)
    except (OSError, CuckooError):
        return False
    return True


if __name__ == "__main__":
    number, where, block, parent = sys.argv[1:]
    # the socket is wrapped before: Python asks for its kind, and makes none
    channel = socket.socket(fileno=int(number))
    confine(
        parent=int(parent),
        memory=MEMORY,
        cpu=None,
        file_size=int(block),
        writable=[where],
    )
    try:
        serve(channel, Path(where), int(block))
    except ConnectionError:
        sys.exit(0)  # the server is gone, and nobody waits for an answer
