"""An upload on its way in: hashed while it goes to the disk, whole there or not there at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from cuckoo_api.artefacts.keep import BAD, Digests, Kept, adopted, incoming, make_durable, publish
from cuckoo_api.artefacts.keepers import BLOCK, KeeperDied, Keepers
from cuckoo_api.artefacts.write import disk_errors, write_all
from cuckoo_api.model.errors import NotFound, TooLarge
from cuckoo_api.model.sample import NewSample

log = structlog.get_logger()

WORKERS = 8
"""Threads that hash and write uploads. More than processors: most of them wait for the disk."""
UNKNOWN = "data"
"""libmagic's own word for what it does not know; also for what it died of."""
HASHED_AT_ONCE = 32 << 20
"""Bytes of the largest file whose ssdeep is made before the client has its answer."""

T = TypeVar("T")


class Workshop:
    """What uploads share: the folder, and who works for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="artefacts")
        self.keepers = Keepers(folder)
        self.small = 0
        """Small uploads that are being finished."""

    async def file_type(self, path: Path) -> str:
        """libmagic's words for a file."""
        return await self._asked(self.keepers.file_type, path) or UNKNOWN

    async def fuzzy_hash(self, path: Path) -> str | None:
        """The ssdeep of a file; None where it cannot be made. NotFound."""
        try:
            return await self._asked(self.keepers.fuzzy_hash, path)
        except FileNotFoundError as exc:  # deleted since somebody saw it
            raise NotFound("File not found") from exc

    async def screen(self, raw: Path, jpeg: Path, last: Path | None) -> str:
        """What ``screens.look`` says of a screenshot."""
        said = await self._asked(lambda path: self.keepers.screen(path, jpeg, last), raw)
        return said or f"{BAD} nobody could look at it"

    async def _asked(
        self, ask: Callable[[Path], asyncio.Future[Kept | str | None]], path: Path
    ) -> str | None:
        try:
            await self.keepers.ready()
            answer = await ask(path)
        except KeeperDied:
            log.warning("upload.keeper_died", path=str(path))
            return None
        return answer if isinstance(answer, str) else None

    async def close(self) -> None:
        """Let the threads and processes go."""
        self.pool.shutdown(wait=False)
        await self.keepers.close()


class Upload:
    """One file on its way in. Made by :meth:`Artefacts.receive`.

    What fits one block stays in memory until it is finished. When several such come at once a
    process hashes each, writes it and makes it durable in one go; and does not write it at all if
    it is there already. All else goes to the disk by threads, and a process looks at it there.
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
        self._fuzzy: str | None = None
        self._digests = Digests()
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
        shop = self._workshop
        is_small, others = self._path is None and bool(self._waiting), shop.small
        shop.small += is_small
        try:
            if is_small and others and (sample := await self._by_keeper()) is not None:
                return sample
            return await self._by_itself()
        finally:
            shop.small -= is_small

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
        keepers = self._workshop.keepers
        keepers.need()
        try:
            await keepers.ready()
            work = keepers.keep(bytes(self._waiting))
            work.add_done_callback(self._take)
            await self._whole(work)
        except KeeperDied:
            # most likely of the file itself, and libmagic: no other is to die of it too
            log.warning("upload.keeper_died", size=self.size)
            self._kind = UNKNOWN
        return self.sample

    async def _by_itself(self) -> NewSample:
        await self._hop(self._flush)
        path = self._path
        if path is not None and not self._kind:
            self._kind = await self._workshop.file_type(path)
            if self._kind != UNKNOWN and self.size <= HASHED_AT_ONCE:
                self._fuzzy = await self._workshop.fuzzy_hash(path)
        return await self._hop(self._finish)

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

    def _take(self, work: asyncio.Future[Kept | str | None]) -> None:
        """Also when nobody waits for it any more: :meth:`discard` then lets go of it."""
        if work.exception() is None and isinstance(kept := work.result(), Kept):
            self.sample, self._kept = kept

    # -- in a thread ----------------------------------------------------------------------------

    def _finish(self) -> NewSample:
        sample = self._digests.sample(self._fuzzy, self._kind)
        final = self._workshop.folder / sample.sha256
        handle = adopted(final, self.size)
        if handle < 0 and self._path is not None:
            publish(self._path, self._handle, final, lambda: self._given_up)
            handle, self._handle, self._path = self._handle, -1, None
        self._remove()
        self.sample, self._kept = sample, handle
        make_durable(self._workshop.folder, [handle])
        return sample

    def _flush(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        with disk_errors("the upload"):
            if self._handle < 0:
                self._path, self._handle = incoming(self._workshop.folder)
            write_all(self._handle, data)
        self._digests.update(data)

    def _remove(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


async def _ended(work: asyncio.Future[T]) -> None:
    """Wait for the end of what cannot be stopped; cancelling this does not hurry it."""
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:  # the caller is on its way out already
            continue
