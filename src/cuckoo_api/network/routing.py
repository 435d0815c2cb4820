"""Routes of tasks: which one a name means now, and a guest led by it for as long as it runs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.network.rooter.client import RooterClient, RooterUnavailable
from cuckoo_api.network.rooter.commands import Service
from cuckoo_api.network.tunnels import is_up
from cuckoo_api.network.vpn import Monitor
from cuckoo_api.settings import Network

log = structlog.get_logger()


class RouteDown(CuckooError):
    """A task's route cannot be had now. It is never run by another one in its place."""


class Router:
    """Gives guests their routes, through the rooter."""

    def __init__(
        self,
        network: Network = Network(),  # noqa: B008 - it is frozen
        rooter: RooterClient | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self._network = network
        self._rooter = rooter or RooterClient(network.socket)
        self._monitor = monitor or Monitor(network.vpns, self._rooter)

    def reconfigure(self, network: Network) -> None:
        """Take other routes. A guest that is led goes on as long as the rooter leads it."""
        self._network = network

    async def guard(self, services: Mapping[str, Sequence[Service]]) -> None:
        """Shut the guests' networks but for these services of the host, by interface.

        A rooter that is not there is told of in the log: guests with a route then fail.
        """
        for interface in self._network.rooter.interfaces:
            try:
                await self._rooter.guard(interface, services.get(interface, ()))
            except CuckooError as exc:
                log.warning("router.not_guarded", interface=interface, reason=exc.log or str(exc))

    def choose(self, asked: str) -> str:
        """The route that a task's word means, or the default where it has none.

        Raises RouteDown with the reason where there is none that is up.
        """
        name = asked or self._network.routing.route
        reasons = {route: self._why_down(route) for route in self._network.candidates(name)}
        up = [route for route, reason in reasons.items() if not reason]
        if not up:
            said = "; ".join(f"{route}: {reason}" for route, reason in reasons.items())
            raise RouteDown(f"The route {name} cannot be had: {said or 'there is no such route'}")
        return secrets.choice(up)

    def shut(self) -> frozenset[str]:
        """The words whose tasks wait in the queue now; with ``[routing] on_down = wait`` only."""
        if self._network.routing.on_down != "wait":
            return frozenset()
        return frozenset(name for name in ("", *self._network.routes) if self._is_down(name))

    @asynccontextmanager
    async def session(
        self, route: str, guest: str, interface: str, *, is_reachable: bool = True
    ) -> AsyncIterator[asyncio.Event]:
        """Lead a guest by a route until this ends; before its machine starts.

        The event is set when nobody leads it any more: it can then go nowhere, or only by its
        route, and what it would do is not worth looking at. ``is_reachable``: its network is one
        of the host's. A guest on a bridge of the rooter's needs it without a route too: its bridge
        and what it may reach go with the rooter. Raises RouteDown.
        """
        routed = self._network.needs_rooter(route)
        plugged = is_reachable and interface in self._network.rooter.made
        if not routed and not plugged:
            yield asyncio.Event()
            return
        if routed and (not is_reachable or interface not in self._network.rooter.interfaces):
            reason = f"its network {interface!r} is not among [rooter] interfaces in routing.conf"
            if not is_reachable:
                reason = "its network is none of the host's: set [qemu] network = bridge"
            raise RouteDown(f"The route {route} cannot be given to the guest: {reason}")
        try:
            if routed:
                lost = await self._rooter.enable(guest, interface, route)
            else:
                lost = await self._rooter.hello()
        except CuckooError as exc:
            if isinstance(exc, RooterUnavailable):
                self._monitor.miss_rooter()
            raise RouteDown(f"The route {route} cannot be given: {exc}") from exc
        log.info("router.led", route=route, exit=self.exit_address(route))
        try:
            yield lost
        finally:
            if lost.is_set():
                self._monitor.miss_rooter()
            if routed:
                await self._rooter.disable(guest)

    def exit_address(self, route: str) -> str | None:
        """The address from which the world sees what goes by a VPN; None where no probe told."""
        return self._monitor.exit_address(route) or None

    def complaint(self, route: str) -> str:
        """What is to be said of a route at the end of an analysis; empty where it is up."""
        reason = self._why_down(route)
        return f"The route {route} was down at the end: {reason}" if reason else ""

    def _is_down(self, name: str) -> bool:
        try:
            route = self.choose(name)
        except RouteDown:
            return True
        needed = self._network.needs_rooter(route) or self._network.rooter.bridges
        return bool(needed) and self._monitor.rooter_is_away

    def _why_down(self, route: str) -> str:
        if route in self._network.vpns:
            return "" if self._monitor.is_up(route) else self._monitor.why(route)
        if route == "internet" and not is_up(self._network.routing.internet):
            return f"there is no interface {self._network.routing.internet} that is up"
        return ""
