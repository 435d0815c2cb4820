"""Samples by their SHA-256, and uploads that are hashed on their way to the disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import magic
import ssdeep

from cuckoo_api.artefacts.folder import AnalysisFolder
from cuckoo_api.artefacts.write import disk_errors, sync_folder
from cuckoo_api.model.errors import NotFound, TooLarge
from cuckoo_api.model.sample import NewSample

BLOCK = 256 << 10
"""Bytes that an upload holds in memory before they go to the disk in one hop."""
HEAD = 64 << 10
"""Bytes of the beginning that the file's type is told from."""
WORKERS = 4

T = TypeVar("T")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Upload:
    """One file on its way in. Made by :meth:`Artefacts.receive`."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, max_size: int) -> None:
        self._folder = folder
        self._pool = pool
        self._max_size = max_size
        self._path: Path | None = None
        self._handle = -1
        self._waiting = bytearray()
        self._head = b""
        self._hashes = [hashlib.new(name) for name in ("md5", "sha1", "sha256", "sha512")]
        self._crc32 = 0
        self._fuzzy = ssdeep.Hash()
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

    async def finish(self) -> NewSample:
        """Make the file durable under its SHA-256, and say what it is."""
        return await self._hop(self._finish)

    async def _hop(self, function: Callable[[], T]) -> T:
        # shielded: a thread cannot be stopped, and the file must not be closed under its hands
        work = asyncio.get_running_loop().run_in_executor(self._pool, function)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    def _flush(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        with disk_errors("the upload"):
            if self._handle < 0:
                self._path = self._folder / f".incoming-{secrets.token_hex(8)}"
                self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
            view = memoryview(data)
            while view:
                view = view[os.write(self._handle, view) :]
        self._hash(data)

    def _hash(self, data: bytes) -> None:
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        for digest in self._hashes:
            digest.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._fuzzy.update(data)

    def _finish(self) -> NewSample:
        self._flush()
        md5, sha1, sha256, sha512 = (digest.hexdigest() for digest in self._hashes)
        final = self._folder / sha256
        if not (final.is_file() and final.stat().st_size == self.size):
            with disk_errors("the upload"):
                os.fsync(self._handle)
                if self._path is not None:
                    self._path.rename(final)
                    self._path = None
                sync_folder(self._folder)
        return NewSample(
            md5=md5,
            sha1=sha1,
            sha256=sha256,
            sha512=sha512,
            crc32=f"{self._crc32:08X}",
            ssdeep=self._fuzzy.digest(),
            file_size=self.size,
            file_type=magic.from_buffer(self._head) if self._head else "empty",
        )

    def discard(self) -> None:
        """Close and remove what is not finished. Cheap enough for the event loop."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


class Artefacts:
    """The folder ``storage``: ``binaries`` by SHA-256, ``analyses`` by task id."""

    def __init__(self, storage: Path) -> None:
        self._binaries = storage / "binaries"
        self._analyses = storage / "analyses"
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="artefacts")

    async def open(self) -> None:
        """Make the folders, and remove uploads that an earlier process did not finish."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        for folder in (self._binaries, self._analyses):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for leftover in self._binaries.glob(".incoming-*"):
            leftover.unlink(missing_ok=True)

    async def close(self) -> None:
        """Let the worker threads go."""
        self._pool.shutdown(wait=False)

    @asynccontextmanager
    async def receive(self, *, max_size: int) -> AsyncIterator[Upload]:
        """Take an upload; left without :meth:`Upload.finish`, nothing of it stays."""
        upload = Upload(self._binaries, self._pool, max_size)
        try:
            yield upload
        finally:
            upload.discard()

    def binary(self, sha256: str) -> Path:
        """The sample's file; NotFound, also for what is no SHA-256."""
        path = self._binaries / sha256.lower()
        if not _SHA256.fullmatch(sha256) or path.is_symlink() or not path.is_file():
            raise NotFound("File not found")
        return path

    def analysis(self, task_id: int) -> AnalysisFolder:
        """The folder of a task, whether it exists or not."""
        return AnalysisFolder(self._analyses / str(int(task_id)), self._binaries)
