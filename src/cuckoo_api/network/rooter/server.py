"""The rooter: takes commands from those who may give them, and has the kernel carry them out.

What a client has opened is shut when its connection ends, however it ends. What the rooter itself
leaves when it ends is shut, or is the route that a guest was given: its firewall stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec
import structlog

from cuckoo_api.model.errors import CuckooError
from cuckoo_api.network.rooter import policy
from cuckoo_api.network.rooter.commands import (
    MAX_LINE,
    PROTOCOL,
    Answer,
    Command,
    Disable,
    Done,
    Enable,
    Guard,
    Hello,
    Known,
    Peers,
    Plug,
    Plugged,
    Refused,
    Service,
    Unplug,
    decode_command,
    encode,
)
from cuckoo_api.network.rooter.kernel import Kernel
from cuckoo_api.network.rooter.peers import let_in, may_ask, pass_on, peer_of
from cuckoo_api.network.rooter.policy import NotAllowed
from cuckoo_api.network.rooter.ruleset import TAP, Grant, Tap
from cuckoo_api.settings import Network

log = structlog.get_logger()

MAX_TAPS = 250


@dataclass(eq=False, slots=True)
class Client:
    """One connection."""

    pid: int
    uid: int
    guests: set[str] = field(default_factory=set)
    """Those that it has given a route."""
    taps: dict[str, Tap] = field(default_factory=dict)
    """What it has plugged in, by the guest."""
    descriptor: int | None = None
    """To be passed on with the answer."""


class Rooter:
    """Everything that it has opened, and for whom."""

    def __init__(self, network: Network, kernel: Kernel | None = None) -> None:
        self._network = network
        self._kernel = kernel or Kernel()
        self._guards: dict[str, tuple[Service, ...]] = {}
        self._grants: dict[str, Grant] = {}
        self._taps: dict[str, Tap] = {}
        """By the guest."""
        self._numbers = 0
        self._lock = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._watch: asyncio.Task[None] | None = None

    async def open(self, path: Path, socket_: socket.socket | None = None) -> None:
        """Shut every guests' network, and listen; ``socket_`` is one that listens already.

        Raises CuckooError with what is missing.
        """
        self._guards = dict.fromkeys(self._network.rooter.interfaces, ())
        made = self._network.rooter.made
        await self._kernel.reset(list(self._guards), made)
        await self._kernel.set_up(made)
        self._watch = asyncio.create_task(self._mend(), name="rooter-links")
        if socket_ is not None:
            self._server = await asyncio.start_unix_server(
                self._serve, sock=socket_, limit=MAX_LINE
            )
            return
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o755, exist_ok=True)  # /run forgets it
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE)
        except OSError as exc:
            raise CuckooError(f"{path}: {exc.strerror or exc}") from exc
        finally:
            os.umask(mask)
        try:
            let_in(path, self._network.rooter)
        except CuckooError:
            await self.close()
            raise

    async def close(self) -> None:
        """Shut all guests, and go. The firewall stays, and lets nothing through."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        if self._server is not None:
            self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()  # what is half done for it comes to its end
        if self._connections:
            await asyncio.wait(set(self._connections))
        made = self._network.rooter.made
        await self._kernel.reset(self._network.rooter.interfaces, made)
        self._kernel.restore()
        await self._kernel.take_down(made)

    async def reload(self, network: Network) -> None:
        """Take another routing.conf. A guest whose route is not in it, or is another, is shut."""
        async with self._lock:
            before, self._network = self._network.rooter.made, network
            for name in network.rooter.interfaces:
                self._guards.setdefault(name, ())  # one that is not there any more stays shut
            await self._apply()
            await self._kernel.shut(list(self._guards))
            await self._rebuild(before, network.rooter.made)
            for guest, grant in list(self._grants.items()):
                if not self._leads(grant):
                    await self._shut(guest)
                    log.info("rooter.shut", guest=guest, route=grant.route)
        log.info("rooter.reloaded")

    # -- connections ----------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._connections[task] = writer
        client = Client(*peer_of(writer.get_extra_info("socket")))
        try:
            if not may_ask(client.uid, self._network.rooter):
                log.warning("rooter.stranger", uid=client.uid, pid=client.pid)
                writer.write(encode(Refused(f"the account {client.uid} may not ask the rooter")))
                return
            log.info("rooter.client", uid=client.uid, pid=client.pid)
            while line := await reader.readline():
                answer = await self._answer(client, line)
                descriptor, client.descriptor = client.descriptor, None
                if descriptor is None:
                    writer.write(encode(answer))
                else:
                    await pass_on(writer, answer, descriptor)
                await writer.drain()
        except (OSError, ValueError):
            pass  # it hung up, does not read, or its line has no end
        finally:
            writer.close()
            await self._leave(client)
            if task is not None:
                del self._connections[task]

    async def _leave(self, client: Client) -> None:
        """Shut what the client had opened."""
        for guest in sorted(client.taps):
            with contextlib.suppress(CuckooError):
                await self._unplug(client, guest)
                log.info("rooter.unplugged", guest=guest, uid=client.uid, pid=client.pid)
        for guest in sorted(client.guests):
            with contextlib.suppress(CuckooError):
                await self._disable(client, guest)
                log.info("rooter.shut", guest=guest, uid=client.uid, pid=client.pid)

    async def _answer(self, client: Client, line: bytes) -> Answer:
        """Do it, and note who asked for what."""
        told = log.bind(uid=client.uid, pid=client.pid)
        try:
            command = decode_command(line)
        except msgspec.MsgspecError as exc:
            told.warning("rooter.refused", reason=str(exc))
            return Refused(f"not a command: {exc}")
        shown = {"command": type(command).__name__, **msgspec.to_builtins(command)}
        try:
            answer = await self._do(client, command)
        except CuckooError as exc:
            told.warning("rooter.refused", reason=exc.log, **shown)
            return Refused(str(exc))
        except Exception as exc:  # noqa: BLE001 - a bug must not shut the guests of everybody
            told.exception("rooter.bug", **shown)
            return Refused(f"Internal error: {type(exc).__name__}")
        if not isinstance(command, Hello | Peers):
            told.info("rooter.done", **shown)
        return answer

    # -- commands -------------------------------------------------------------------------------

    async def _do(self, client: Client, command: Command) -> Answer:
        match command:
            case Hello(protocol):
                if protocol != PROTOCOL:
                    raise NotAllowed(f"protocol {protocol}: this rooter speaks {PROTOCOL}")
            case Guard(interface, services):
                await self._guard(interface, services)
            case Enable(guest, interface, route):
                await self._enable(client, guest, interface, route)
            case Disable(guest):
                if guest not in client.guests:
                    raise NotAllowed(f"{guest} has no route of this client's")
                await self._disable(client, guest)
            case Peers(vpn):
                if vpn not in self._network.vpns:
                    raise NotAllowed(f"there is no VPN {vpn!r}")
                return Known(await self._kernel.peers(self._network.vpns[vpn].interface))
            case Plug(interface, guest, mac):
                return await self._plug(client, interface, guest, mac)
            case Unplug(guest):
                if guest not in client.taps:
                    raise NotAllowed(f"{guest} has no tap of this client's")
                await self._unplug(client, guest)
        return Done()

    async def _guard(self, interface: str, services: list[Service]) -> None:
        policy.check_interface(self._network, interface)
        policy.check_services(services)
        async with self._lock:
            before = self._guards[interface]
            self._guards[interface] = tuple(services)
            try:
                await self._apply()
            except CuckooError:
                self._guards[interface] = before
                raise

    async def _enable(self, client: Client, guest: str, interface: str, route: str) -> None:
        policy.check_interface(self._network, interface)
        policy.check_address(guest)
        way = policy.exit_of(self._network, route)
        async with self._lock:
            if guest in self._grants and guest not in client.guests:
                raise NotAllowed(f"{guest} has another client's route")
            if guest in self._grants:
                await self._shut(guest)
            self._numbers += 1
            grant = Grant(guest, interface, way, self._numbers, route)
            client.guests.add(guest)
            # first the way and then the door: there is no moment at which it could take another
            await self._kernel.lead(grant)
            self._grants[guest] = grant
            try:
                await self._apply()
            except CuckooError:
                del self._grants[guest]
                await self._kernel.mislead(grant)
                raise

    async def _disable(self, client: Client, guest: str) -> None:
        async with self._lock:
            client.guests.discard(guest)
            await self._shut(guest)

    async def _shut(self, guest: str) -> None:
        grant = self._grants.pop(guest, None)
        if grant is not None:
            await self._apply()
            await self._kernel.mislead(grant)

    async def _apply(self) -> None:
        taps = self._taps.values() if self._network.rooter.bridges or self._taps else None
        await self._kernel.apply(self._guards, self._grants.values(), taps)

    # -- taps -----------------------------------------------------------------------------------

    async def _plug(self, client: Client, interface: str, guest: str, mac: str) -> Plugged:
        policy.check_place(self._network, interface, guest, mac)
        async with self._lock:
            there = self._taps.get(guest)
            if there is not None and there is not client.taps.get(guest):
                raise NotAllowed(f"{guest} has another client's tap")
            if any(tap.mac == mac and tap.guest != guest for tap in self._taps.values()):
                raise NotAllowed(f"{mac} is another guest's")
            await self._pull(guest)
            if len(self._taps) >= MAX_TAPS:
                raise NotAllowed(f"there are {MAX_TAPS} taps already")
            self._numbers += 1
            tap = Tap(f"{TAP}{self._numbers}", interface, guest, mac)
            self._taps[guest] = client.taps[guest] = tap
            try:
                await self._apply()  # what it may send comes first
                client.descriptor = await self._kernel.plug(tap)
            except CuckooError:
                await self._pull(guest)
                raise
            return Plugged(tap.name)

    async def _unplug(self, client: Client, guest: str) -> None:
        async with self._lock:
            if self._taps.get(guest) is client.taps.pop(guest):
                await self._pull(guest)
                await self._shut(guest)

    async def _pull(self, guest: str) -> None:
        tap = self._taps.pop(guest, None)
        if tap is not None:
            await self._apply()
            await self._kernel.unplug(tap)

    async def _rebuild(
        self, before: Mapping[str, IPv4Interface], now: Mapping[str, IPv4Interface]
    ) -> None:
        """Leave bridges that are as they were alone, with all that is plugged into them."""
        gone = dict(before.items() - now.items())
        for guest in [guest for guest, tap in self._taps.items() if tap.bridge in gone]:
            await self._pull(guest)
        await self._kernel.take_down(gone)
        await self._kernel.set_up(dict(now.items() - before.items()))

    def _leads(self, grant: Grant) -> bool:
        """Whether routing.conf still says what the guest has."""
        try:
            policy.check_interface(self._network, grant.interface)
            return policy.exit_of(self._network, grant.route) == grant.exit
        except CuckooError:
            return False

    async def _mend(self) -> None:
        """Follow the host's interfaces.

        Guests are led through a tunnel again that was away, for the kernel has dropped its route;
        a machine that is plugged into a guests' bridge is kept apart from the others.
        """
        async for name in self._kernel.changed():
            async with self._lock:
                ways = {g.exit for g in self._grants.values() if g.exit.interface == name}
                try:
                    await self._kernel.part(self._guards)
                    for way in ways:
                        await self._kernel.fill(way)
                except CuckooError as exc:
                    log.warning("rooter.not_mended", interface=name, reason=exc.log)
