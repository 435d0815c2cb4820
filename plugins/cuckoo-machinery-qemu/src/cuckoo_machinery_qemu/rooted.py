"""Guests on a bridge that the server's rooter makes: nothing here needs a right.

The rooter makes each tap, and hands over its descriptor; see ``cuckoo_api.machinery.Taps``. What a
guest sees is what it sees on a bridge of ours, so a snapshot that was taken on one fits the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from ipaddress import ip_address

import structlog

from cuckoo_api.machinery import GuestAddress, Tap, Taps
from cuckoo_machinery_qemu.bridge import AGENT_PORT
from cuckoo_machinery_qemu.spec import Place

log = structlog.get_logger()

_APART = [
    *("unshare", "--user", "--map-current-user", "--net", "--"),
    *("setpriv", "--no-new-privs", "--pdeathsig=KILL", "--"),
]
"""An empty network for QEMU: its tap is a descriptor, and needs none."""


class RootedNetwork:
    """Taps of the rooter's."""

    kind = "bridge"

    def __init__(self, bridge: str, taps: Taps, rights: list[str]) -> None:
        """``rights`` are the words before a program that has a machine's rights."""
        self._bridge = bridge
        self._taps = taps
        self._rights = rights
        self._plugged: dict[str, Tap] = {}
        self._apart = False

    async def open(self) -> None:
        """Raises BackendUnavailable where the rooter is not there."""
        await self._taps.ready()
        trial = await asyncio.create_subprocess_exec(
            *(*self._rights, *_APART, "true"), stderr=asyncio.subprocess.PIPE
        )
        _, complaint = await trial.communicate()
        self._apart = trial.returncode == 0
        if not self._apart:
            reason = " ".join(complaint.decode(errors="replace").split())
            log.warning("qemu.no_namespaces", reason=reason, hint="QEMU sees the host's network")

    async def close(self) -> None:
        """Let the taps go that are left. Raises nothing."""
        for tap in list(self._plugged.values()):
            await tap.unplug()
        self._plugged.clear()

    def misfit(self, place: Place) -> str:
        """Why a machine cannot be on the bridge, as it is configured; empty where it can."""
        here = self._taps.bridges[self._bridge]
        said = f"[rooter] bridges in routing.conf has {self._bridge}:{here}"
        if ip_address(place.ip) not in here.network:
            return f"{place.label}: ip = {place.ip} is not in that network: {said}"
        if place.gateway != str(here.ip):
            return f"{place.label}: resultserver_ip = {place.gateway} is not its address: {said}"
        return ""

    def address(self, place: Place, port: int) -> GuestAddress:
        """The guest is at its own address."""
        return GuestAddress(f"{place.ip}:{AGENT_PORT}", place.gateway, port)

    def launcher(self, place: Place) -> list[str]:
        """The words before QEMU's own."""
        return _APART if self._apart else []

    @contextlib.asynccontextmanager
    async def connect(self, place: Place) -> AsyncIterator[tuple[str, list[int]]]:
        """QEMU's ``-netdev`` and the tap's descriptor, which QEMU inherits and we then close."""
        await self.disconnect(place)
        tap = self._plugged[place.label] = await self._taps.plug(self._bridge, place.ip, place.mac)
        try:
            yield f"tap,id=net0,fd={tap.descriptor},vhost=off", [tap.descriptor]
        finally:
            # where it is the last one the tap goes, which waits for the kernel's lock on networks
            await asyncio.shield(asyncio.to_thread(os.close, tap.descriptor))

    async def disconnect(self, place: Place) -> None:
        """The machine is off: let go of its tap."""
        tap = self._plugged.pop(place.label, None)
        if tap is not None:
            await tap.unplug()
