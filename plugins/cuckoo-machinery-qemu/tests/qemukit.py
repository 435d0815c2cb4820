"""Machines on the real QEMU, and a host for their guests to reach."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import select
import shlex
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.guest import GuestClient
from cuckoo_api.guest.image import GuestImage, read_image
from cuckoo_api.machinery import BackendConfig, MachineConfig, Service
from cuckoo_machinery_qemu.backend import QemuBackend
from cuckoo_machinery_qemu.plugin import MACHINE_OPTIONS, OPTIONS

BOOT_TIMEOUT = 60
SNAPSHOT = "clean"
BRIDGE = "cktbr"
GATEWAY = "192.168.73.1"
ADDRESSES = {"one": "192.168.73.11", "two": "192.168.73.12"}
UID_BASE = 64800
RESULTS = Service("results", "tcp", 2042)
DNS = Service("dns", "udp", 53)
HTTP = Service("http", "tcp", 80)


@dataclass(frozen=True)
class Lab:
    """Two machines, ``one`` and ``two``, with live snapshots for one kind of network."""

    network: str
    image: GuestImage
    snapshots: Path
    """The folder with a folder for each machine. Never written to."""

    def config(
        self,
        state_dir: Path,
        *,
        services: Iterable[Service] = (RESULTS,),
        machine: Mapping[str, str] | None = None,
        **options: str,
    ) -> BackendConfig:
        """Their configuration; ``machine`` and ``options`` change keys of theirs."""
        image = self.image
        own = {option.name: option.default for option in MACHINE_OPTIONS}
        own |= {"image": str(image.disk), "kernel": str(image.kernel), "append": image.append}
        own |= {"initrd": str(image.initrd), "memory": str(image.memory)}
        general = {option.name: option.default for option in OPTIONS}
        general |= {"interface": BRIDGE, "accel": "tcg", "network": self.network}
        return BackendConfig(
            name="qemu",
            machines=tuple(
                MachineConfig(
                    label=label,
                    name=label,
                    ip=ip,
                    snapshot=SNAPSHOT,
                    resultserver_ip=GATEWAY,
                    options=own | dict(machine or {}),
                )
                for label, ip in ADDRESSES.items()
            ),
            state_dir=state_dir,
            options=general | options,
            services=tuple(services),
        )

    def state_dir(self, folder: Path) -> Path:
        """A folder for a backend, with the snapshots linked into it."""
        for label in ADDRESSES:
            own = folder / label / "snapshots"
            own.mkdir(mode=0o700, parents=True)
            (own / SNAPSHOT).symlink_to(self.snapshots / label / "snapshots" / SNAPSHOT)
        return folder

    def words(self) -> list[str]:
        """This lab as words of a command line, for :meth:`from_words`."""
        return [self.network, self.image.folder, str(self.snapshots)]

    @classmethod
    def from_words(cls, network: str, image: str, snapshots: str) -> Lab:
        """The lab of another process."""
        found = read_image(Path(image))
        assert found is not None
        return cls(network, found, Path(snapshots))


async def take_snapshots(lab: Lab) -> None:
    """Boot both machines at once, and keep them as they are when their agents answer."""
    backend = QemuBackend(lab.config(lab.snapshots))

    async def take(label: str) -> None:
        await backend.restore_and_start(label, "")
        async with agent_of(backend, label):
            pass
        await backend.take_snapshot(label, SNAPSHOT)

    try:
        await backend.open()
        await asyncio.gather(*(take(label) for label in ADDRESSES))
    finally:
        await backend.close()


# -- a guest --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def agent_of(backend: QemuBackend, label: str = "one") -> AsyncIterator[GuestClient]:
    """A running machine's agent, once it answers."""
    async with GuestClient(backend.address(label).agent) as agent:
        await agent.wait_ready(BOOT_TIMEOUT)
        yield agent


@contextlib.asynccontextmanager
async def started(backend: QemuBackend, label: str = "one") -> AsyncIterator[GuestClient]:
    """Restore and start a machine; its agent."""
    await backend.restore_and_start(label, SNAPSHOT)
    async with agent_of(backend, label) as agent:
        yield agent


async def inside(agent: GuestClient, command: str) -> str:
    """What a shell command in the guest prints; it may not complain."""
    output, complaint = await agent.execute(command)
    assert complaint == "", complaint
    return output


async def python_inside(agent: GuestClient, program: str, argument: object) -> str:
    """What a Python program in the guest prints; it finds the argument as ``given``."""
    head = f"import json, socket, struct, threading\ngiven = json.loads({json.dumps(argument)!r})\n"
    return await inside(agent, f"python3 -c {shlex.quote(head + program)}")


PROBE = """
def tcp(host, port):
    with socket.create_connection((host, port), 3) as talk:
        talk.sendall(b"hello")
        talk.shutdown(socket.SHUT_WR)
        return talk.recv(100).decode()

def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
        talk.settimeout(3)
        talk.sendto(b"hello", (host, port))
        return talk.recv(100).decode()

def ask(way, host, port):
    try:
        answers[f"{way} {host} {port}"] = globals()[way](host, port)
    except OSError:
        pass

answers = {}
threads = [threading.Thread(target=ask, args=target) for target in given]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(answers))
"""


async def reached(agent: GuestClient, *targets: tuple[str, str, int]) -> dict[str, str]:
    """Which of ``(tcp or udp, host, port)`` answer the guest, and with what."""
    answers: dict[str, str] = json.loads(await python_inside(agent, PROBE, targets))
    return answers


# -- a host ---------------------------------------------------------------------------------------


@dataclass
class Host:
    """Listens as a server does, and greets everybody with the name of the door."""

    heard: dict[str, bytes] = field(default_factory=dict)
    """What the last visitor of each door has said."""
    _servers: list[asyncio.Server] = field(default_factory=list)
    _datagrams: list[asyncio.DatagramTransport] = field(default_factory=list)

    async def tcp(self, name: str, ip: str, port: int) -> None:
        """A door on an address."""
        self._servers.append(await asyncio.start_server(self._greeter(name), ip, port))

    async def udp(self, name: str, ip: str, port: int) -> None:
        """The same for datagrams."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Answering(name, self.heard), (ip, port)
        )
        self._datagrams.append(transport)

    async def unix(self, service: Service, path: Path) -> None:
        """A door of a guest that has no network; it is the guest's own."""
        greeter = self._greeter(service.name, framed=service.protocol == "udp")
        self._servers.append(await asyncio.start_unix_server(greeter, path))
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    async def serve(self, backend: QemuBackend, *services: Service, label: str = "one") -> None:
        """Doors for these services, where the backend says they belong."""
        sockets = backend.address(label).sockets
        for service in services:
            if service.name in sockets:
                await self.unix(service, sockets[service.name])
            elif not sockets:
                listen = self.tcp if service.protocol == "tcp" else self.udp
                await listen(service.name, GATEWAY, service.port)

    async def close(self) -> None:
        """Shut all doors."""
        for server in self._servers:
            server.close()
            await server.wait_closed()
        for transport in self._datagrams:
            transport.close()

    def _greeter(self, name: str, *, framed: bool = False):  # type: ignore[no-untyped-def]  # asyncio's callback
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if framed:
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                self.heard[name] = await reader.readexactly(length)
                writer.write(struct.pack(">H", len(name)))
            else:
                self.heard[name] = await reader.read()
            writer.write(name.encode())
            writer.close()
            await writer.wait_closed()

        return greet


class _Answering(asyncio.DatagramProtocol):
    def __init__(self, name: str, heard: dict[str, bytes]) -> None:
        self._name = name
        self._heard = heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._heard[self._name] = data
        self._transport.sendto(self._name.encode(), addr)  # type: ignore[attr-defined]  # a datagram transport


class Sniffer:
    """Sees every frame that passes an interface, both ways."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((interface, 0))
        self._socket.settimeout(20)

    def until(self, mark: bytes) -> list[bytes]:
        """Every frame up to the one that holds the mark."""
        frames = []
        while not frames or mark not in frames[-1]:
            frames.append(self._socket.recv(1 << 16))
        return frames

    def close(self) -> None:
        self._socket.close()


# -- what is left ---------------------------------------------------------------------------------


def run(*command: str) -> str:
    """A command's output; it may not fail."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def links() -> set[str]:
    """The network interfaces here."""
    return {link["ifname"] for link in json.loads(run("ip", "-json", "link"))}


def rules() -> str:
    """The firewall here."""
    return run("nft", "list", "ruleset")


def pid_of(backend: QemuBackend, label: str = "one") -> int:
    """The machine's QEMU, as the file beside its run folder says."""
    return int((backend.config.state_dir / label / "qemu.pid").read_text())


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


@contextlib.contextmanager
def all_end(pids: Iterable[int], seconds: float = 10):  # type: ignore[no-untyped-def]  # a plain context
    """Fail unless each of the processes has ended soon after the block."""
    handles = {pid: os.pidfd_open(pid) for pid in pids}
    try:
        yield
        for pid, handle in handles.items():
            ended, _, _ = select.select([handle], [], [], seconds)
            assert ended, f"{pid} still runs: {Path(f'/proc/{pid}/cmdline').read_text()}"
    finally:
        for handle in handles.values():
            os.close(handle)


def digests(*folders: Path) -> dict[str, str]:
    """What lies in these folders, as hashes of the content."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
