"""Screenshots, as a keeper looks at them: their pixels, and perhaps more, come from a guest."""

from __future__ import annotations

import hashlib
import os
import warnings

from PIL import Image, ImageChops, UnidentifiedImageError

from cuckoo_api.artefacts.keep import BAD, NEW, OLD

MAX_PIXELS = 4096 * 2304
JPEG_QUALITY = 80
CURSOR = (16, 32)
"""Width and height, in pixels, of the largest change that is none."""
LITTLE = 0.01
"""Nor may it be more than this share of the screen."""


def look(raw: int, jpeg: int, last: int = -1) -> str:
    """``new`` and the hash of the pixels, which are in the file ``jpeg`` then.

    ``old`` and the hash where they differ by no more than a cursor from those of ``last``; ``bad``
    and the reason for what is no picture.
    """
    try:
        shown = _decoded(raw)
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        return f"{BAD} {e}"
    digest = hashlib.sha256(shown.tobytes()).hexdigest()
    if last >= 0 and _differs_little(shown, _decoded(last)):
        return f"{OLD} {digest}"
    with os.fdopen(jpeg, "wb", closefd=False) as file:
        shown.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"{NEW} {digest}"


def _decoded(handle: int) -> Image.Image:
    """Two simple formats only, no more than a large screen has."""
    with os.fdopen(handle, "rb", closefd=False) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=("PNG", "PPM")) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"a screen of {picture.width}x{picture.height} pixels")
                return picture.convert("RGB")
        except UnidentifiedImageError as exc:
            raise ValueError("not a PNG or PPM picture") from exc


def _differs_little(shown: Image.Image, last: Image.Image) -> bool:
    if shown.size != last.size:
        return False
    box = ImageChops.difference(shown, last).getbbox()
    if box is None:
        return True
    width, height = box[2] - box[0], box[3] - box[1]
    share = width * height / (shown.width * shown.height)
    return width <= CURSOR[0] and height <= CURSOR[1] and share <= LITTLE
