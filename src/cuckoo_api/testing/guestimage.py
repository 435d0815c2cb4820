"""The project's own Linux guest, for tests on a real hypervisor: built once, then kept."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cuckoo_api.guest.build import GuestImage, build_guest

CACHE = Path(os.environ.get("CUCKOO_TEST_CACHE") or Path.home() / ".cache" / "cuckoo-tests")
"""Outlives a run. Whether what lies there is still right, the image's builder knows."""


def guest_image() -> GuestImage:
    """The image, built if it is not there or out of date. Safe in several processes at once.

    It takes half a minute and Debian's packages; blocks, and wants no event loop around it.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    return asyncio.run(build_guest(CACHE / "guest", lambda text, _share: print(text)))  # noqa: T201 - pytest shows it when a test fails
