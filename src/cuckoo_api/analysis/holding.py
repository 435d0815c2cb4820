"""The files that one submission has in hand; what gets no row is gone when it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cuckoo_api.artefacts import Artefacts, Upload
from cuckoo_api.model.sample import NewSample


class Holding:
    """Uploads, each whole or not at all. A context: leaving it lets go of them."""

    def __init__(
        self, artefacts: Artefacts, forget: Callable[[str], Awaitable[None]], *, max_size: int
    ) -> None:
        """``forget`` removes a sample's file, by its SHA-256, unless a row refers to it."""
        self._artefacts = artefacts
        self._forget = forget
        self._max_size = max_size
        self._uploads = AsyncExitStack()
        self._finished: set[str] = set()
        self._kept: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._uploads.aclose()
        for sha256 in self._finished - self._kept:
            await self._forget(sha256)

    async def receive(self) -> Upload:
        """A new upload."""
        return await self._uploads.enter_async_context(
            self._artefacts.receive(max_size=self._max_size)
        )

    async def finish(self, upload: Upload) -> NewSample:
        """Make it a sample; until the end nobody removes it."""
        self._uploads.push_async_callback(upload.discard)
        sample = await upload.finish()
        self._finished.add(sample.sha256)
        return sample

    def path(self, sample: NewSample) -> Path:
        """Where a finished one lies."""
        return self._artefacts.binary(sample.sha256)

    def keep(self, samples: Collection[NewSample]) -> None:
        """These have rows now."""
        self._kept.update(sample.sha256 for sample in samples)
