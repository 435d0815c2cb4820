"""Samples by their SHA-256 and analyses by their task's id, under one local folder."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cuckoo_api.artefacts.folder import HIDDEN, AnalysisFolder
from cuckoo_api.artefacts.keep import locked_alone, remove_leftovers
from cuckoo_api.artefacts.upload import Upload, Workshop
from cuckoo_api.model.errors import NotFound

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Artefacts:
    """The folder ``storage``: ``binaries`` by SHA-256, ``analyses`` by task id."""

    def __init__(self, storage: Path) -> None:
        self._binaries = storage / "binaries"
        self._analyses = storage / "analyses"
        self._workshop = Workshop(self._binaries)

    async def open(self) -> None:
        """Make the folders, and remove uploads that a process which is gone did not finish."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        for folder in (self._binaries, self._analyses):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        remove_leftovers(self._binaries)

    async def close(self) -> None:
        """Let the workers go."""
        await self._workshop.close()

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

    async def fuzzy_hash(self, sha256: str) -> str | None:
        """The sample's ssdeep, made now, in constant memory; None where it cannot be made.

        NotFound where there is no file.
        """
        return await self._workshop.fuzzy_hash(self.binary(sha256))

    async def look_at_screen(self, raw: Path, jpeg: Path, last: Path | None) -> str:
        """What a keeper says of a screenshot, see ``screens.look``. Raises OSError."""
        return await self._workshop.screen(raw, jpeg, last)

    async def forget_binary(self, sha256: str, is_wanted: Callable[[], Awaitable[bool]]) -> None:
        """Remove the sample's file, unless an upload has it in hand or ``is_wanted`` says so.

        ``is_wanted`` is asked while no upload can take the file for its own.
        """
        path = self._binaries / sha256
        handle = locked_alone(path)
        if handle < 0:
            return
        try:
            if not await is_wanted():
                await asyncio.to_thread(path.unlink, missing_ok=True)
        finally:
            os.close(handle)

    def hidden(self) -> list[int]:
        """The tasks whose folders were on their way out when a process ended."""
        names = (path.name.removeprefix(HIDDEN) for path in self._analyses.glob(f"{HIDDEN}*"))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def analysis(self, task_id: int) -> AnalysisFolder:
        """The folder of a task, whether it, or the task, exists or not."""
        return AnalysisFolder(self._analyses / str(int(task_id)), self._binaries)
