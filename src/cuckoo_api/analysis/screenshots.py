"""The guest's screen while the sample runs: one JPEG for each change, as ``shots/NNNN.jpg``.

What is no change: a picture that was there before, and one that differs by no more than a cursor,
which blinks, or a single character, as in a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import warnings
from pathlib import Path
from typing import BinaryIO

import structlog
from PIL import Image, ImageChops, UnidentifiedImageError

from cuckoo_api.artefacts import AnalysisFolder
from cuckoo_api.fleet import Lease
from cuckoo_api.machinery import Capability, MachineryError

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between two looks at the screen: no hypervisor tells of a changed picture."""
MAX_SHOTS = 200
MAX_PIXELS = 4096 * 2304
JPEG_QUALITY = 80
CURSOR = (16, 32)
"""Width and height, in pixels, of the largest change that is none."""
LITTLE = 0.01
"""Nor may it be more than this share of the screen."""
MAX_NUMBER = 9_999


async def take_screenshots(lease: Lease, folder: AnalysisFolder) -> None:
    """Until cancelled, or until the machine gives no more pictures."""
    if not lease.capabilities & Capability.SCREENSHOT:
        return
    series = _Series(folder.path / "shots")
    raw = folder.path / "shots" / ".screen"
    while series.taken < MAX_SHOTS:
        try:
            await lease.screenshot(raw)
            await asyncio.to_thread(series.look, raw)
        except (MachineryError, OSError, ValueError, Image.DecompressionBombError) as exc:
            log.info("screenshot.failed", machine=lease.machine.name, error=str(exc))
            return
        finally:
            raw.unlink(missing_ok=True)
        await asyncio.sleep(INTERVAL)


class _Series:
    """The pictures of one analysis that were kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: Image.Image | None = None
        self._seen: set[bytes] = set()
        self._number = 0
        self.taken = 0

    def look(self, raw: Path) -> None:
        """Keep the picture if it shows something new. Blocks. Raises OSError or ValueError."""
        shown = _decoded(raw)
        digest = hashlib.sha256(shown.tobytes()).digest()
        if digest in self._seen or _differs_little(shown, self._last):
            return
        with self._free() as file:
            shown.save(file, "JPEG", quality=JPEG_QUALITY)
        self._last = shown
        self._seen.add(digest)
        self.taken += 1

    def _free(self) -> BinaryIO:
        """The next file; the guest may have sent pictures of its own."""
        while self._number < MAX_NUMBER:
            self._number += 1
            with contextlib.suppress(FileExistsError):
                return (self._folder / f"{self._number:04}.jpg").open("xb")
        raise OSError(f"there are {MAX_NUMBER} pictures already")


def _decoded(raw: Path) -> Image.Image:
    """The pixels come from a guest: two simple formats only, no more than a large screen has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(raw, formats=("PNG", "PPM")) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"a screen of {picture.width}x{picture.height} pixels")
                return picture.convert("RGB")
        except UnidentifiedImageError as exc:
            raise ValueError("not a PNG or PPM picture") from exc


def _differs_little(shown: Image.Image, last: Image.Image | None) -> bool:
    if last is None or shown.size != last.size:
        return False
    box = ImageChops.difference(shown, last).getbbox()
    if box is None:
        return True
    width, height = box[2] - box[0], box[3] - box[1]
    share = width * height / (shown.width * shown.height)
    return width <= CURSOR[0] and height <= CURSOR[1] and share <= LITTLE
