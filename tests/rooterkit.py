"""The rooter in the test's own process, on a kernel that only notes what it is told.

What guests can truly do is tested on the real kernel, in ``tests/network``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface
from pathlib import Path

from cuckoo_api.network.rooter.commands import Peer, Service
from cuckoo_api.network.rooter.kernel import Kernel
from cuckoo_api.network.rooter.netlink import KernelRefused
from cuckoo_api.network.rooter.ruleset import Exit, Grant, Tap
from cuckoo_api.network.rooter.server import Rooter
from cuckoo_api.settings import Network


class NotedKernel(Kernel):
    """Whom it lets through, and in which order it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.guards: dict[str, tuple[Service, ...]] = {}
        self.led: dict[str, Exit] = {}
        self.open: dict[str, Exit] = {}
        self.refuses: set[str] = set()
        """What it does not do: ``lead``, ``apply`` or ``plug``."""
        self.made: dict[str, IPv4Interface] = {}
        self.taps: dict[str, Tap] = {}
        """What is in the bridges, by the guest."""
        self.held: set[str] = set()
        """The guests that the firewall knows as somebody's."""
        self.known = [
            Peer(
                endpoint="203.0.113.7:51820", handshake=0, rx_bytes=1, tx_bytes=2,
                allowed=["0.0.0.0/0"],
            )
        ]  # fmt: skip
        self.news: asyncio.Queue[str] = asyncio.Queue()

    async def reset(
        self, interfaces: Sequence[str], made: Mapping[str, IPv4Interface] | None = None
    ) -> None:
        self.log.append("reset")
        self.led.clear()
        await self.apply(dict.fromkeys(interfaces, ()), (), () if made else None)
        self.taps.clear()

    async def apply(
        self,
        guards: Mapping[str, Sequence[Service]],
        grants: Iterable[Grant],
        taps: Iterable[Tap] | None = None,
    ) -> None:
        if "apply" in self.refuses:
            raise KernelRefused("nft: no")
        self.held = {tap.guest for tap in taps or ()}
        self.guards = {name: tuple(services) for name, services in guards.items()}
        self.open = {grant.guest: grant.exit for grant in grants}
        self.log.append(f"open {' '.join(sorted(self.open)) or 'to none'}")

    async def set_up(self, made: Mapping[str, IPv4Interface]) -> None:
        self.made |= made

    async def take_down(self, made: Mapping[str, IPv4Interface]) -> None:
        for name in made:
            del self.made[name]

    async def plug(self, tap: Tap) -> int:
        if "plug" in self.refuses:
            raise KernelRefused(f"no tap {tap.name}")
        assert tap.guest in self.held, "what it may send comes first"
        self.taps[tap.guest] = tap
        self.log.append(f"plug {tap.guest}")
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    async def unplug(self, tap: Tap) -> None:
        assert tap.guest not in self.held
        self.taps.pop(tap.guest, None)
        self.log.append(f"unplug {tap.guest}")

    async def shut(self, interfaces: Sequence[str]) -> None:
        self.log.append(f"shut {' '.join(interfaces)}")

    async def lead(self, grant: Grant) -> None:
        if "lead" in self.refuses:
            raise KernelRefused(f"there is no interface {grant.exit.interface}")
        self.led[grant.guest] = grant.exit
        self.log.append(f"lead {grant.guest}")

    async def mislead(self, grant: Grant) -> None:
        del self.led[grant.guest]
        self.log.append(f"mislead {grant.guest}")

    async def fill(self, way: Exit) -> None:
        self.log.append(f"fill {way.interface}")

    async def part(self, interfaces: Iterable[str]) -> None:
        self.log.append(f"part {' '.join(interfaces)}")

    async def peers(self, interface: str) -> list[Peer]:
        return self.known

    async def changed(self) -> AsyncIterator[str]:
        while True:
            yield await self.news.get()


@asynccontextmanager
async def noted_rooter(
    network: Network, path: Path, kernel: NotedKernel | None = None
) -> AsyncIterator[NotedKernel]:
    """A rooter that listens there, until this ends."""
    kernel = kernel or NotedKernel()
    rooter = Rooter(network, kernel)
    await rooter.open(path)
    try:
        yield kernel
    finally:
        await rooter.close()


async def happens(true: Callable[[], bool]) -> None:
    """Wait for what the other end does when a connection ends."""
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0)
