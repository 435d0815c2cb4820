"""An upload on its way in: hashed while it goes to the disk, whole there or not there at all."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import secrets
import stat
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import magic
import ssdeep

from cuckoo_api.artefacts.write import disk_errors, sync_folder, write_all
from cuckoo_api.model.errors import TooLarge, Unavailable
from cuckoo_api.model.sample import NewSample

BLOCK = 128 << 10
"""Bytes that an upload holds in memory before they go to the disk in one hop."""
INCOMING = ".incoming-"
"""How the names of unfinished uploads begin."""

T = TypeVar("T")


class FileTypes:
    """libmagic, once for each thread: one instance would make the threads wait for each other."""

    def __init__(self) -> None:
        self._local = threading.local()

    def here(self) -> magic.Magic:
        """The calling thread's instance."""
        found: magic.Magic | None = getattr(self._local, "magic", None)
        if found is None:
            found = self._local.magic = magic.Magic()
        return found


@dataclass(frozen=True)
class Workshop:
    """What uploads share."""

    folder: Path
    pool: ThreadPoolExecutor
    types: FileTypes = field(default_factory=FileTypes)


class Upload:
    """One file on its way in. Made by :meth:`Artefacts.receive`.

    What fits one block stays in memory until it is finished: then it is hashed, written and made
    durable in a single hop to a thread, and not written at all if it is there already.
    """

    def __init__(self, workshop: Workshop, max_size: int) -> None:
        self._workshop = workshop
        self._max_size = max_size
        self._path: Path | None = None
        self._handle = -1
        self._kept = -1
        self._waiting = bytearray()
        self._given_up = False
        self._hashes = [hashlib.new(name) for name in ("md5", "sha1", "sha256", "sha512")]
        self._crc32 = 0
        self._fuzzy: ssdeep.Hash | None = None
        self.size = 0
        """Bytes so far."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes. Raises TooLarge over the limit, Unavailable on a full disk."""
        self.size += len(data)
        if self.size > self._max_size:
            raise TooLarge(
                f"The file is larger than {self._max_size} bytes, the limit of this server "
                f"([api] max_upload_size)"
            )
        self._waiting += data
        if len(self._waiting) >= BLOCK:
            await self._hop(self._flush)

    async def flush(self) -> None:
        """Let go of the memory: what waits goes to the disk now."""
        if self._waiting:
            await self._hop(self._flush)

    async def finish(self) -> NewSample:
        """Make the file durable under its SHA-256, and say what it is.

        Call it once. A sample that is there already stays. Until :meth:`discard` nobody removes
        it: there is time to keep a row that refers to it. Raises Unavailable on a full disk.
        """
        return await self._hop(self._finish)

    async def discard(self) -> None:
        """Remove what is not finished; let go of what is."""
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1
        if self._handle >= 0:
            # another pool than the uploads': theirs may be gone when the server stops
            await _ended(asyncio.get_running_loop().run_in_executor(None, self._remove))

    async def _hop(self, function: Callable[[], T]) -> T:
        work = asyncio.get_running_loop().run_in_executor(self._workshop.pool, function)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # a thread cannot be stopped, and the file must not be closed under its hands
            self._given_up = True
            await _ended(work)
            raise

    # -- in a thread ----------------------------------------------------------------------------

    def _finish(self) -> NewSample:
        if self._fuzzy is None:
            data = self._take()
            self._hash(data)
            # the length is known: cheaper than the incremental hash, and the same
            return self._keep(
                ssdeep.hash(data), self._workshop.types.here().from_buffer(data), data
            )
        self._flush()
        kind = self._workshop.types.here().from_file(str(self._path))
        return self._keep(self._fuzzy.digest(), kind)

    def _take(self) -> bytes:
        data = bytes(self._waiting)
        self._waiting.clear()
        return data

    def _flush(self) -> None:
        data = self._take()
        self._save(data)
        self._hash(data)
        if self._fuzzy is None:
            self._fuzzy = ssdeep.Hash()
        self._fuzzy.update(data)

    def _hash(self, data: bytes) -> None:
        for digest in self._hashes:
            digest.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)

    def _save(self, data: bytes) -> None:
        with disk_errors("the upload"):
            if self._handle < 0:
                self._path, self._handle = _incoming(self._workshop.folder)
            write_all(self._handle, data)

    def _keep(self, fuzzy: str, kind: str, unsaved: bytes | None = None) -> NewSample:
        md5, sha1, sha256, sha512 = (digest.hexdigest() for digest in self._hashes)
        final = self._workshop.folder / sha256
        self._kept = _adopted(final, self.size)
        if self._kept < 0:
            if unsaved is not None:
                self._save(unsaved)
            self._publish(final)
        # also for a file that is there: another upload may have renamed it a moment ago
        with disk_errors("the upload"):
            sync_folder(self._workshop.folder)
        self._remove()
        return NewSample(
            md5=md5,
            sha1=sha1,
            sha256=sha256,
            sha512=sha512,
            crc32=f"{self._crc32:08X}",
            ssdeep=fuzzy,
            file_size=self.size,
            file_type=kind,
        )

    def _publish(self, final: Path) -> None:
        with disk_errors("the upload"):
            os.fsync(self._handle)
            if self._path is None or self._given_up:
                raise Unavailable("The upload was given up")
            self._path.rename(final)
            self._path = None
        # its lock goes on holding, now beside those of others who keep the same file
        fcntl.flock(self._handle, fcntl.LOCK_SH)
        self._kept, self._handle = self._handle, -1

    def _remove(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def remove_leftovers(folder: Path) -> None:
    """Remove uploads whose process is gone; another living process' ones are locked, and stay."""
    for path in folder.glob(f"{INCOMING}*"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # finished or removed meanwhile
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)


def _incoming(folder: Path) -> tuple[Path, int]:
    """A new file, locked for as long as it is open."""
    while True:
        path = folder / f"{INCOMING}{secrets.token_hex(8)}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                return path, handle
        except BlockingIOError:
            pass
        # a process that starts took it for a leftover, between its making and its locking
        os.close(handle)
        path.unlink(missing_ok=True)


def _adopted(path: Path, size: int) -> int:
    """The sample that is there already, whole, open and locked against removal; -1 if it is not."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    fcntl.flock(handle, fcntl.LOCK_SH)  # who removes a sample does it in a moment
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_size == size and found.st_nlink:
        return handle
    os.close(handle)
    return -1


def locked_alone(path: Path) -> int:
    """The file, locked so that no upload adopts it; -1 where one has it, or it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    return handle


async def _ended(work: asyncio.Future[T]) -> None:
    """Wait for the end of what cannot be stopped; cancelling this does not hurry it."""
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:  # the caller is on its way out already
            continue
