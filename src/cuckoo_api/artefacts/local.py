"""Samples by their SHA-256 and analyses by their task's id, under one local folder."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from cuckoo_api.artefacts.folder import AnalysisFolder
from cuckoo_api.artefacts.upload import Upload, Workshop, remove_leftovers
from cuckoo_api.model.errors import NotFound

WORKERS = 8
"""Threads that hash and write uploads. More than processors: most of them wait for the disk."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Artefacts:
    """The folder ``storage``: ``binaries`` by SHA-256, ``analyses`` by task id."""

    def __init__(self, storage: Path) -> None:
        self._binaries = storage / "binaries"
        self._analyses = storage / "analyses"
        self._workshop = Workshop(
            self._binaries, ThreadPoolExecutor(WORKERS, thread_name_prefix="artefacts")
        )

    async def open(self) -> None:
        """Make the folders, and remove uploads that a process which is gone did not finish."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        for folder in (self._binaries, self._analyses):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        remove_leftovers(self._binaries)

    async def close(self) -> None:
        """Let the worker threads go."""
        self._workshop.pool.shutdown(wait=False)

    @asynccontextmanager
    async def receive(self, *, max_size: int) -> AsyncIterator[Upload]:
        """Take an upload of at most ``max_size`` bytes.

        Left without :meth:`Upload.finish`, by an error or by a cancel, nothing of it stays.
        """
        upload = Upload(self._workshop, max_size)
        try:
            yield upload
        finally:
            await upload.discard()

    def binary(self, sha256: str) -> Path:
        """The sample's file; NotFound, also for what is no SHA-256."""
        if _SHA256.fullmatch(sha256):
            path = self._binaries / sha256.lower()
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    return path
            except OSError:  # the answer is below, for this and for all else
                pass
        raise NotFound("File not found")

    def analysis(self, task_id: int) -> AnalysisFolder:
        """The folder of a task, whether it, or the task, exists or not."""
        return AnalysisFolder(self._analyses / str(int(task_id)), self._binaries)
