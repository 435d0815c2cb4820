"""The project's own Linux guest, for tests on a real hypervisor: built once, then kept."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from cuckoo_api.guest.build import build_guest
from cuckoo_api.guest.image import GuestImage, read_image

CACHE = Path(os.environ.get("CUCKOO_TEST_CACHE") or Path.home() / ".cache" / "cuckoo-tests")
"""Outlives a run. Whether what lies there is still right, the image's builder knows."""


def guest_image(folder: Path) -> GuestImage:
    """The image, in a folder that is made; built if it is not there or out of date.

    Safe in several processes at once: one that builds anew does not change what another has.
    Building takes half a minute and Debian's packages. Blocks, and wants no event loop around it.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    built = asyncio.run(build_guest(CACHE / "guest", _show))
    shutil.copytree(built.folder, folder, copy_function=_link)
    image = read_image(folder)
    if image is None:
        raise FileNotFoundError(f"{folder} does not hold the image of {built.folder}")
    return image


def _show(text: str, _share: float | None) -> None:
    print(text)  # noqa: T201 - pytest shows it when a test fails


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
