"""What the parts of the rooter that speak to the kernel have in common."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

from pyroute2 import AsyncIPRoute, NetlinkError  # type: ignore[import-untyped]

from cuckoo_api.model.errors import CuckooError

OURS = 99
"""In the ``protocol`` of each rule and route that we have made, and of no other."""
KILL_SWITCH = 4096
"""The metric of a route that takes over when the real one is gone."""
IPV4 = socket.AF_INET


class KernelRefused(CuckooError):
    """The kernel, or one of the programs, did not do what was asked."""


@contextlib.asynccontextmanager
async def netlink() -> AsyncIterator[AsyncIPRoute]:
    """A connection to the kernel."""
    async with AsyncIPRoute() as link:
        yield link


async def change(order: Any, *, gone: bool = False) -> None:
    """Await a change; ``gone``: what is to be removed may be away already."""
    try:
        await order
    except NetlinkError as exc:
        if gone and exc.code in {errno.ENOENT, errno.ESRCH, errno.ENODEV}:
            return
        if exc.code == errno.EEXIST:
            return
        raise KernelRefused(f"netlink: {exc}") from exc
