"""The rooter: takes commands from those who may give them, and has the kernel carry them out.

What a client has opened is shut when its connection ends, however it ends. What the rooter itself
leaves when it ends is shut, or is the route that a guest was given: its firewall stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import ipaddress
import os
import pwd
import re
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from cuckoo_api.model.errors import CuckooError
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
    Refused,
    Service,
    decode_command,
    encode,
)
from cuckoo_api.network.rooter.kernel import Kernel, table_number
from cuckoo_api.network.rooter.ruleset import Exit, Grant
from cuckoo_api.settings import Network

log = structlog.get_logger()

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
NOWHERE = frozenset({"drop", "none"})


class NotAllowed(CuckooError):
    """A command that is not carried out, whoever gives it."""


@dataclass(eq=False, slots=True)
class Client:
    """One connection."""

    pid: int
    uid: int
    guests: set[str] = field(default_factory=set)
    """Those that it has given a route."""


class Rooter:
    """Everything that it has opened, and for whom."""

    def __init__(self, network: Network, kernel: Kernel | None = None) -> None:
        self._network = network
        self._kernel = kernel or Kernel()
        self._guards: dict[str, tuple[Service, ...]] = {}
        self._grants: dict[str, Grant] = {}
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
        await self._kernel.reset(list(self._guards))
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
            _let_in(path, self._network.rooter.user, self._network.rooter.group)
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
        await self._kernel.reset(self._network.rooter.interfaces)
        self._kernel.restore()

    async def reload(self, network: Network) -> None:
        """Take another routing.conf. A guest whose route is not in it, or is another, is shut."""
        async with self._lock:
            self._network = network
            for name in network.rooter.interfaces:
                self._guards.setdefault(name, ())  # one that is not there any more stays shut
            await self._kernel.apply(self._guards, self._grants.values())
            await self._kernel.shut(list(self._guards))
            for guest, grant in list(self._grants.items()):
                if not self._leads(grant):
                    await self._shut(guest)
                    log.info("rooter.shut", guest=guest, route=grant.route)
        log.info("rooter.reloaded")

    # -- connections ----------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._connections[task] = writer
        client = Client(*_peer(writer.get_extra_info("socket")))
        try:
            if not self._may(client):
                log.warning("rooter.stranger", uid=client.uid, pid=client.pid)
                writer.write(encode(Refused(f"the account {client.uid} may not ask the rooter")))
                return
            log.info("rooter.client", uid=client.uid, pid=client.pid)
            while line := await reader.readline():
                writer.write(encode(await self._answer(client, line)))
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # it hung up, or its line has no end
        finally:
            writer.close()
            await self._leave(client)
            if task is not None:
                del self._connections[task]

    def _may(self, client: Client) -> bool:
        wanted = self._network.rooter
        if client.uid in {0, os.geteuid()}:
            return True
        with contextlib.suppress(KeyError):
            if wanted.user and client.uid == pwd.getpwnam(wanted.user).pw_uid:
                return True
        with contextlib.suppress(KeyError):
            if wanted.group:
                account = pwd.getpwuid(client.uid)
                groups = os.getgrouplist(account.pw_name, account.pw_gid)
                return grp.getgrnam(wanted.group).gr_gid in groups
        return False

    async def _leave(self, client: Client) -> None:
        """Shut what the client had opened."""
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
        return Done()

    async def _guard(self, interface: str, services: list[Service]) -> None:
        self._check_interface(interface)
        if len(services) > 64:
            raise NotAllowed("more than 64 services")
        for one in services:
            check_address(one.address)
            if one.protocol not in {"tcp", "udp"} or not 0 < one.port < 65536:
                raise NotAllowed(f"{one.protocol}/{one.port}: no service")
        async with self._lock:
            await self._kernel.apply(
                self._guards | {interface: tuple(services)}, self._grants.values()
            )
            self._guards[interface] = tuple(services)

    async def _enable(self, client: Client, guest: str, interface: str, route: str) -> None:
        self._check_interface(interface)
        check_address(guest)
        way = self.exit_of(route)
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
            try:
                await self._kernel.apply(self._guards, [*self._grants.values(), grant])
            except CuckooError:
                await self._kernel.mislead(grant)
                raise
            self._grants[guest] = grant

    async def _disable(self, client: Client, guest: str) -> None:
        async with self._lock:
            client.guests.discard(guest)
            await self._shut(guest)

    async def _shut(self, guest: str) -> None:
        grant = self._grants.pop(guest, None)
        if grant is not None:
            await self._kernel.apply(self._guards, self._grants.values())
            await self._kernel.mislead(grant)

    def _leads(self, grant: Grant) -> bool:
        """Whether routing.conf still says what the guest has."""
        try:
            self._check_interface(grant.interface)
            return self.exit_of(grant.route) == grant.exit
        except CuckooError:
            return False

    def exit_of(self, route: str) -> Exit:
        """Where a route leads, by routing.conf. Raises NotAllowed for what is not in it."""
        network, routing = self._network, self._network.routing
        if route not in network.routes or len(network.candidates(route)) != 1:
            raise NotAllowed(f"{route!r} is no route of this host's routing.conf")
        if route in NOWHERE:
            return Exit()
        if route == "internet":
            table = table_number(routing.rt_table, 0)
            return Exit(interface=routing.internet, table=table, dns=routing.dns)
        if route == "inetsim":
            ports = [text.split(":") for text in network.inetsim.ports]
            pairs = tuple((int(first), int(second)) for first, second in ports)
            return Exit(server=network.inetsim.server, ports=pairs, dns=network.inetsim.server)
        if route == "tor":
            return Exit(proxy=network.tor.proxyport, proxy_dns=network.tor.dnsport)
        [name] = network.candidates(route)
        if name not in network.vpns:
            raise NotAllowed(f"{route!r} leads nowhere")
        vpn = network.vpns[name]
        table = table_number(vpn.rt_table, list(network.vpns).index(name))
        return Exit(interface=vpn.interface, table=table, dns=vpn.dns or routing.dns)

    def _check_interface(self, name: str) -> None:
        if not _INTERFACE.fullmatch(name) or name not in self._network.rooter.interfaces:
            raise NotAllowed(f"{name!r} is not among [rooter] interfaces in routing.conf")

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


def check_address(text: str) -> None:
    """Raise NotAllowed unless it is one IPv4 address of a host, written as it is."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise NotAllowed(f"{text!r:.60} is no IPv4 address") from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise NotAllowed(f"{text} is no host's address")


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of who is at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, 17, size))
    return pid, uid


def _let_in(path: Path, user: str, group: str) -> None:
    """Let those connect who may ask; who they are is checked again when they do."""
    try:
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        elif user:
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    except KeyError as exc:
        raise CuckooError(f"[rooter]: there is no account or group {exc}") from exc
    except OSError as exc:
        # without the right to give files away the folder's own rights have to do
        log.warning("rooter.socket", path=str(path), reason=exc.strerror)
        path.chmod(0o666)
        return
    path.chmod(0o660)
