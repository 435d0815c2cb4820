"""An upload on its way in: hashed while it goes to the disk, whole there or not there at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import ssdeep
import structlog

from cuckoo_api.artefacts.keep import (
    Digests,
    FileTypes,
    Kept,
    adopted,
    incoming,
    keep,
    make_durable,
    publish,
)
from cuckoo_api.artefacts.keepers import BLOCK, KeeperDied, Keepers
from cuckoo_api.artefacts.write import disk_errors, write_all
from cuckoo_api.model.errors import NotFound, TooLarge
from cuckoo_api.model.sample import NewSample

log = structlog.get_logger()

WORKERS = 8
"""Threads that hash and write uploads. More than processors: most of them wait for the disk."""
UNKNOWN = "data"
"""libmagic's own word for what it does not know; also for what it died of."""

T = TypeVar("T")


class Workshop:
    """What uploads share: the folder, and who works for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="artefacts")
        self.types = FileTypes()
        self.keepers = Keepers(folder)
        self.small = 0
        """Small uploads that are being finished."""

    async def fuzzy_hash(self, path: Path) -> str:
        """The ssdeep of a file, of which only a block is in memory. NotFound."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, _fuzzy_hash, path)

    async def close(self) -> None:
        """Let the threads and processes go."""
        self.pool.shutdown(wait=False)
        await self.keepers.close()


class Upload:
    """One file on its way in. Made by :meth:`Artefacts.receive`.

    What fits one block stays in memory until it is finished: then it is hashed, written and made
    durable in one go, by a thread, or where several come at once by a process of its own; and not
    written at all if it is there already.
    """

    def __init__(self, workshop: Workshop, max_size: int) -> None:
        self._workshop = workshop
        self._max_size = max_size
        self._path: Path | None = None
        self._handle = -1
        self._kept = -1
        self._waiting = bytearray()
        self._given_up = False
        self._kind = ""
        self._digests = Digests()
        self._fuzzy: ssdeep.Hash | None = None
        self.size = 0
        """Bytes so far."""
        self.sample: NewSample | None = None
        """What it became, once it is kept."""

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
        if self._fuzzy is not None or not self._waiting:
            return await self._hop(self._finish)
        shop = self._workshop
        if shop.small:
            shop.keepers.need()
        shop.small += 1
        try:
            sample = await self._by_keeper()
            return sample if sample is not None else await self._hop(self._finish)
        finally:
            shop.small -= 1

    async def discard(self) -> None:
        """Remove what is not finished; let go of what is."""
        if self._kept >= 0:
            fcntl.flock(self._kept, fcntl.LOCK_UN)  # a keeper may be about to close its own
            os.close(self._kept)
            self._kept = -1
        if self._handle >= 0:
            # another pool than the uploads': theirs may be gone when the server stops
            await _ended(asyncio.get_running_loop().run_in_executor(None, self._remove))

    async def _by_keeper(self) -> NewSample | None:
        """The sample, where a process could keep it."""
        work = self._workshop.keepers.keep(bytes(self._waiting))
        if work is None:
            return None
        work.add_done_callback(self._take)
        try:
            await self._whole(work)
        except KeeperDied:
            # most likely of the file itself, and libmagic: the server must not die of it too
            log.warning("upload.keeper_died", size=self.size)
            self._kind = UNKNOWN
        return self.sample

    async def _hop(self, function: Callable[[], T]) -> T:
        return await self._whole(
            asyncio.get_running_loop().run_in_executor(self._workshop.pool, function)
        )

    async def _whole(self, work: asyncio.Future[T]) -> T:
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # it cannot be stopped, and the file must not be closed under its hands
            self._given_up = True
            await _ended(work)
            raise

    def _take(self, work: asyncio.Future[Kept | None]) -> None:
        """Also when nobody waits for it any more: :meth:`discard` then lets go of it."""
        if work.exception() is None and (kept := work.result()) is not None:
            self.sample, self._kept = kept

    # -- in a thread ----------------------------------------------------------------------------

    def _finish(self) -> NewSample:
        kept = self._keep_small() if self._fuzzy is None else self._keep_large(self._fuzzy)
        self.sample, self._kept = kept
        make_durable(self._workshop.folder, [kept.handle])
        return kept.sample

    def _keep_small(self) -> Kept:
        data = bytes(self._waiting)
        kind = self._kind or self._workshop.types.here().from_buffer(data)
        # the length is known: cheaper than the incremental hash, and the same
        fuzzy = ssdeep.hash(data)
        return keep(self._workshop.folder, data, kind, fuzzy, lambda: self._given_up)

    def _keep_large(self, fuzzy: ssdeep.Hash) -> Kept:
        self._flush()
        kind = self._workshop.types.here().from_file(str(self._path))
        sample = self._digests.sample(fuzzy.digest(), kind)
        final = self._workshop.folder / sample.sha256
        handle = adopted(final, self.size)
        if handle < 0 and self._path is not None:
            publish(self._path, self._handle, final, lambda: self._given_up)
            handle, self._handle, self._path = self._handle, -1, None
        self._remove()
        return Kept(sample, handle)

    def _flush(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        with disk_errors("the upload"):
            if self._handle < 0:
                self._path, self._handle = incoming(self._workshop.folder)
            write_all(self._handle, data)
        self._digests.update(data)
        if self._fuzzy is None:
            self._fuzzy = ssdeep.Hash()
        self._fuzzy.update(data)

    def _remove(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def _fuzzy_hash(path: Path) -> str:
    fuzzy = ssdeep.Hash()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                fuzzy.update(block)
    except FileNotFoundError as exc:  # deleted since somebody saw it
        raise NotFound("File not found") from exc
    return str(fuzzy.digest())


async def _ended(work: asyncio.Future[T]) -> None:
    """Wait for the end of what cannot be stopped; cancelling this does not hurry it."""
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:  # the caller is on its way out already
            continue
