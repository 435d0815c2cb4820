"""Files that are whole or not there, whatever happens in between."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuckoo_api.model.errors import Unavailable


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """A full disk is an answer for the user; every other OSError is not."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(f"The disk is full: {what} was not kept", log=str(exc)) from exc
        raise


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte; a regular file may take fewer at a time when the disk gets full."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, sync, rename. Blocks; for a worker thread."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk_errors(path.name):
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


async def write_atomic(path: Path, data: bytes) -> None:
    """Write the file so that it is whole and durable, or as it was before."""
    await asyncio.to_thread(write_whole, path, data)
