"""The states of all VPNs, looked at every few seconds: no tunnel tells of its own end.

An interface that is up proves nothing. What counts is that something came back lately.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.model.task import now_text
from cuckoo_api.network.rooter.client import RooterClient, RooterUnavailable
from cuckoo_api.network.tunnels import Look, look_at
from cuckoo_api.settings import Vpn

log = structlog.get_logger()

PERIOD = 4.0
"""Seconds from one look to the next."""
SILENCE = 22.0
"""Seconds in which nothing came from the peer, of which one sign may be lost.

OpenVPN pings every ten by the usual settings. WireGuard acknowledges a datagram after ten, and
when nothing came for fifteen it asks for new keys, which the peer answers at once.
"""
HANDSHAKE = 180
"""Seconds after which WireGuard itself gives a session up."""
FAILURES = 2
"""Probes that are not answered, one after the other: a single packet may be lost."""

Status = Literal["up", "down", "stale"]
STATUSES: tuple[Status, ...] = ("up", "down", "stale")


class VpnState(msgspec.Struct, frozen=True, kw_only=True):
    """A VPN as the API shows it."""

    name: str
    description: str
    interface: str
    status: Status
    """``up``: something came back lately; ``stale``: it is set up and nothing does; ``down``."""
    since: str
    """When it got that status."""
    proof: Literal["probe", "peer", "none"]
    """What tells that something comes back: an answered probe, what the peer sends, nothing."""
    peer: str
    """Address of the other end, where it is known."""
    rx_bytes: int
    tx_bytes: int
    """Of the interface."""
    error: str | None
    """Why it is not up."""


class VpnStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/vpn/status``."""

    vpns: dict[str, bool]
    """Whether each is up."""
    details: list[VpnState]


@dataclass(slots=True)
class Judge:
    """Remembers what one look cannot show."""

    heard: int | None = None
    heard_at: float = 0.0
    failures: int = 0

    def judge(self, seen: Look, now: float, wall: float) -> tuple[Status, str]:
        """The status and, unless it is ``up``, why. ``now`` is monotonic, ``wall`` is not."""
        if not seen.present:
            return "down", seen.error
        if not seen.connected:
            return "stale", seen.error
        self.failures = self.failures + 1 if seen.probed is False else 0
        if seen.handshake == 0:
            return "stale", "there never was a handshake"
        silent = self._silence(seen, now, wall)
        if seen.probed:
            return "up", ""
        if self.failures >= FAILURES:
            return "stale", seen.error
        if silent >= SILENCE:
            return "stale", f"nothing came from the peer for {silent:.0f} s"
        return "up", ""

    def _silence(self, seen: Look, now: float, wall: float) -> float:
        """Seconds in which the peer's counter did not rise; 0 where there is none."""
        if seen.heard is None:
            return 0.0
        if self.heard is None:  # a first look tells no more than that
            age = wall - seen.handshake if seen.handshake else 0.0
            self.heard_at = now - age if age > HANDSHAKE else now
        elif seen.heard > self.heard:
            self.heard_at = now
        self.heard = seen.heard  # it is less where the tunnel was started anew
        return now - self.heard_at


def proof_of(vpn: Vpn) -> Literal["probe", "peer", "none"]:
    """What its state rests on, besides that its interface is up."""
    return "probe" if vpn.probe else "none" if vpn.type == "interface" else "peer"


class Monitor:
    """Keeps every VPN's state. ``on_change`` is called with the new one and the old status."""

    def __init__(
        self,
        vpns: Mapping[str, Vpn],
        rooter: RooterClient,
        on_change: Callable[[VpnState, str], None] = lambda _new, _old: None,
    ) -> None:
        self.on_change = on_change
        self.on_rooter_back: Callable[[], None] = lambda: None
        self.rooter_is_away = False
        """As far as somebody has noticed."""
        self._vpns = vpns
        self._rooter = rooter
        self._judges = {name: Judge() for name in vpns}
        self._states: dict[str, VpnState] = {}
        self._addresses: dict[str, str] = {}
        self._looked = float("-inf")
        self._looking = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None
        self._needed = asyncio.Event()

    def reconfigure(self, vpns: Mapping[str, Vpn]) -> None:
        """Look at these from now on. Of those that have changed nothing is known any more."""
        for name, vpn in self._vpns.items():
            if vpns.get(name) != vpn:
                for known in (self._judges, self._states, self._addresses):
                    known.pop(name, None)
        self._vpns = vpns
        for name in vpns:
            self._judges.setdefault(name, Judge())
        self._looked = float("-inf")
        if vpns:
            self._needed.set()

    def miss_rooter(self) -> None:
        """It did not answer: look for it until it does."""
        self.rooter_is_away = True
        self._needed.set()

    def open(self) -> None:
        """Begin to look, as soon as there is something to look at."""
        if self._vpns:
            self._needed.set()
        if self._loop is None:
            self._loop = asyncio.create_task(self._look_again_and_again(), name="vpn-monitor")

    async def close(self) -> None:
        """Stop."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})

    async def status(self) -> VpnStatus:
        """All of them, no older than a period. Raises RooterUnavailable where it is not there."""
        await self._rooter.hello()
        if time.monotonic() - self._looked > PERIOD:
            await self.look()
        found = self.known()
        return VpnStatus(vpns={one.name: one.status == "up" for one in found}, details=found)

    def known(self) -> list[VpnState]:
        """All of them as of the last look."""
        return [self._states[name] for name in self._vpns if name in self._states]

    def is_up(self, name: str) -> bool:
        """As of the last look."""
        state = self._states.get(name)
        return state is not None and state.status == "up"

    def why(self, name: str) -> str:
        """Why it is not up, in a few words."""
        state = self._states.get(name)
        if state is None:
            return "its state is not known yet"
        return f"it is {state.status}: {state.error}"

    def exit_address(self, name: str) -> str:
        """The address that its probe's page saw; empty where there is none."""
        return self._addresses.get(name, "")

    async def look(self) -> None:
        """Look at all now, at once. Raises RooterUnavailable; the others are looked at still."""
        async with self._looking:
            vpns = self._vpns
            looks = await asyncio.gather(
                *(look_at(vpn, self._rooter) for vpn in vpns.values()), return_exceptions=True
            )
            self._looked = time.monotonic()
            lost: BaseException | None = None
            for name, seen in zip(vpns, looks, strict=True):
                if self._vpns.get(name) != vpns[name]:
                    continue  # it is another one meanwhile
                if isinstance(seen, BaseException):
                    lost = seen
                    seen = Look(error="the rooter does not answer")
                self._take(name, seen)
            if lost is not None:
                raise lost

    def _take(self, name: str, seen: Look) -> None:
        vpn, before = self._vpns[name], self._states.get(name)
        status, error = self._judges[name].judge(seen, time.monotonic(), time.time())
        if seen.address:
            self._addresses[name] = seen.address
        state = VpnState(
            name=name,
            description=vpn.description,
            interface=vpn.interface,
            status=status,
            since=before.since if before and before.status == status else now_text(),
            proof=proof_of(vpn),
            peer=seen.peer,
            rx_bytes=seen.rx_bytes,
            tx_bytes=seen.tx_bytes,
            error=error or None,
        )
        self._states[name] = state
        if before is None or before.status != status:
            log.info("vpn.changed", vpn=name, status=status, error=error)
            self.on_change(state, before.status if before else "")

    async def _look_again_and_again(self) -> None:
        while True:
            await self._needed.wait()
            began = time.monotonic()
            with contextlib.suppress(RooterUnavailable):
                await self.look()
            if self.rooter_is_away:
                with contextlib.suppress(CuckooError):
                    await self._rooter.hello()
                    self.rooter_is_away = False
                    self.on_rooter_back()
            if not self._vpns and not self.rooter_is_away:
                self._needed.clear()
            await asyncio.sleep(max(0.0, began + PERIOD - time.monotonic()))
