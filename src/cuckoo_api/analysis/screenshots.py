"""The guest's screen while the sample runs: one JPEG for each change, as ``shots/NNNN.jpg``."""

from __future__ import annotations

import asyncio
import hashlib
import warnings
from pathlib import Path

import structlog
from PIL import Image, UnidentifiedImageError

from cuckoo_api.artefacts import AnalysisFolder
from cuckoo_api.fleet import Lease
from cuckoo_api.machinery import Capability, MachineryError

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between two looks at the screen: no hypervisor tells of a changed picture."""
MAX_SHOTS = 200
MAX_PIXELS = 4096 * 2304
JPEG_QUALITY = 80


async def take_screenshots(lease: Lease, folder: AnalysisFolder) -> None:
    """Until cancelled, or until the machine gives no more pictures."""
    if not lease.capabilities & Capability.SCREENSHOT:
        return
    last = b""
    taken = 0
    raw = folder.path / "shots" / ".screen"
    while taken < MAX_SHOTS:
        try:
            await lease.screenshot(raw)
            last, changed = await asyncio.to_thread(
                _keep_if_changed, raw, folder.path / "shots" / f"{taken + 1:04}.jpg", last
            )
        except (MachineryError, OSError, ValueError, Image.DecompressionBombError) as exc:
            log.info("screenshot.failed", machine=lease.machine.name, error=str(exc))
            return
        finally:
            raw.unlink(missing_ok=True)
        taken += changed
        await asyncio.sleep(INTERVAL)


def _keep_if_changed(raw: Path, jpeg: Path, last: bytes) -> tuple[bytes, bool]:
    """Convert the picture unless it shows what the last one did.

    The pixels come from a guest: two simple formats only, and no more pixels than a large screen.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(raw, formats=("PNG", "PPM")) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"a screen of {picture.width}x{picture.height} pixels")
                rgb = picture.convert("RGB")
        except UnidentifiedImageError as exc:
            raise ValueError("not a PNG or PPM picture") from exc
    digest = hashlib.sha256(rgb.tobytes()).digest()
    if digest == last:
        return last, False
    rgb.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return digest, True
