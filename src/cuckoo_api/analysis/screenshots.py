"""The guest's screen while the sample runs: one JPEG for each change, as ``shots/NNNN.jpg``.

What is no change: a picture that was there before, and one that differs by no more than a cursor,
which blinks, or a single character, as in a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

import structlog

from cuckoo_api.artefacts import BAD, NEW, AnalysisFolder, Artefacts
from cuckoo_api.fleet import Lease
from cuckoo_api.fleet.deadlines import to_the_end
from cuckoo_api.machinery import Capability, MachineryError

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between two looks at the screen: no hypervisor tells of a changed picture."""
PATIENCE = 10.0
"""Seconds that looking at one may take."""
MAX_SHOTS = 200
MAX_NUMBER = 9_999


async def take_screenshots(lease: Lease, folder: AnalysisFolder, artefacts: Artefacts) -> None:
    """Until cancelled, or until the machine gives no more pictures."""
    if not lease.capabilities & Capability.SCREENSHOT:
        return
    series = _Series(folder.path / "shots", artefacts)
    try:
        while series.taken < MAX_SHOTS:
            await lease.screenshot(series.raw)
            # also when the analysis ends meanwhile: the last picture often shows the most
            await to_the_end(series.look())
            await asyncio.sleep(INTERVAL)
    except (MachineryError, OSError, ValueError) as exc:
        log.info("screenshot.failed", machine=lease.machine.name, error=str(exc))
    finally:
        series.close()


class _Series:
    """The pictures of one analysis that were kept. Nothing looks into them here."""

    def __init__(self, folder: Path, artefacts: Artefacts) -> None:
        self._folder = folder
        self._artefacts = artefacts
        self._last = folder / ".last"
        self._jpeg = folder / ".jpeg"
        self._seen: set[str] = set()
        """Hashes of files, most of which are the same again, and of pixels."""
        self._number = 0
        self.raw = folder / ".screen"
        """Where the next one goes."""
        self.taken = 0

    async def look(self) -> None:
        """Keep the picture if it shows something new. Raises OSError or ValueError."""
        as_file = await asyncio.to_thread(_hash_of, self.raw)
        if as_file in self._seen:
            return
        last = self._last if self.taken else None
        async with asyncio.timeout(PATIENCE):
            answer = await self._artefacts.look_at_screen(self.raw, self._jpeg, last)
        verdict, _, said = answer.partition(" ")
        if verdict == BAD:
            raise ValueError(said)
        if verdict == NEW:
            self._seen.add(as_file)
            if said not in self._seen:
                self._seen.add(said)
                self._publish()

    def close(self) -> None:
        """Leave the pictures alone."""
        for path in (self.raw, self._jpeg, self._last):
            path.unlink(missing_ok=True)

    def _publish(self) -> None:
        """Give the picture the next name; the guest may have sent some of its own."""
        while self._number < MAX_NUMBER:
            self._number += 1
            with contextlib.suppress(FileExistsError):
                os.link(self._jpeg, self._folder / f"{self._number:04}.jpg")
                self._jpeg.unlink()
                self.raw.replace(self._last)
                self.taken += 1
                return
        raise OSError(f"there are {MAX_NUMBER} pictures already")


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
