"""A process that looks at uploads for the server: ``python -m cuckoo_api.artefacts.keeper``.

What a client sent may be made to break libmagic or ssdeep: so these run here, confined. In the
server itself many uploads at a time would be slow, too: each lets go of the interpreter's lock and
takes it again a score of times, and every time the threads wait for each other.

It speaks over a socket that keeps messages apart. Once it is ready it says so; then each message
is an order, a letter, and is answered in turn, with ``null`` where it could not be done:

* ``KEEP``, and a small file's bytes: the sample as JSON, without its ssdeep, and an open file whose
  lock holds it. In a flood the hash would be a quarter of the work; who looks at the sample has it
  made then.
* ``TYPE`` or ``HASH``, with a file that is open for reading: libmagic's words, the ssdeep.
* ``SCREEN``, with a screenshot, a file for it as a JPEG, and the one before if there is one: see
  :mod:`cuckoo_api.artefacts.screens`.

It ends when the server does.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import magic
import msgspec
import ssdeep

from cuckoo_api.artefacts.keep import (
    FAILED,
    HASH,
    READY,
    SCREEN,
    TYPE,
    Kept,
    keep,
    make_durable,
)
from cuckoo_api.confinement import confine
from cuckoo_api.descriptors import received
from cuckoo_api.model.errors import CuckooError

MEMORY = 1 << 30
"""Bytes of address space; libmagic's data and what waits take a tenth of it."""
MOST = 16
"""Files that share one sync of the folder."""
BLOCK = 128 << 10
MAX_FILE = 16 << 20
"""Bytes of the largest file that it may write: a screen as a JPEG."""
LOOKED_AT = 1 << 20
"""Bytes of a file that libmagic reads, at once, to know its type. Its own limit is 7 MiB; no format
is told by what comes later than this."""


class Order(NamedTuple):
    """A message from the server, and the files that came with it."""

    message: bytes
    handles: list[int]


def serve(channel: socket.socket, folder: Path, max_size: int) -> None:
    """Do what comes until the server hangs up."""
    types = magic.Magic()
    types.setparam(magic.MAGIC_PARAM_BYTES_MAX, LOOKED_AT)
    channel.send(READY)
    while batch := _batch(channel, max_size + 1):
        done = [_done(folder, order, types) for order in batch]
        kept = [one.handle for one in done if isinstance(one, Kept)]
        durable = _is_durable(folder, kept) if kept else True
        for one in done:
            if isinstance(one, str):
                channel.send(msgspec.json.encode(one))
            elif one is not None and durable:
                socket.send_fds(channel, [msgspec.json.encode(one.sample)], [one.handle])
            else:
                channel.send(FAILED)
        for handle in (*kept, *(handle for order in batch for handle in order.handles)):
            os.close(handle)


def _batch(channel: socket.socket, size: int) -> list[Order]:
    """The orders that wait, at least one; none when the server has hung up."""
    batch = [Order(*received(channel, size))]
    while batch[-1].message and len(batch) < MOST:
        try:
            batch.append(Order(*received(channel, size, socket.MSG_DONTWAIT)))
        except BlockingIOError:
            return batch
    return [order for order in batch if order.message]


def _done(folder: Path, order: Order, types: magic.Magic) -> Kept | str | None:
    letter, data = order.message[:1], order.message[1:]
    try:
        if letter == TYPE:
            return _type_of(order.handles[0], types)
        if letter == HASH:
            return _hash_of(order.handles[0])
        if letter == SCREEN:
            # only here: most servers' guests have no screen
            from cuckoo_api.artefacts.screens import look

            return look(*order.handles)
        return keep(folder, data, types.from_buffer(data))
    except Exception:  # noqa: BLE001 - the server tries again, and finds the reason for its client
        return None


def _type_of(handle: int, types: magic.Magic) -> str:
    """In the same words as of one that was kept here: of a part of a program, they are others."""
    head = os.pread(handle, BLOCK, 0)
    if len(head) < BLOCK:
        return str(types.from_buffer(head))
    return str(types.from_descriptor(handle))


def _hash_of(handle: int) -> str:
    """The ssdeep of a file, of which only a block is in memory."""
    fuzzy = ssdeep.Hash()
    with os.fdopen(handle, "rb", closefd=False) as file:
        while block := file.read(BLOCK):
            fuzzy.update(block)
    return str(fuzzy.digest())


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
        file_size=MAX_FILE,
        writable=[where],
    )
    try:
        serve(channel, Path(where), int(block))
    except ConnectionError:
        sys.exit(0)  # the server is gone, and nobody waits for an answer
