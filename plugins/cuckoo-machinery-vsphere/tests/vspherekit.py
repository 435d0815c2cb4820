"""What the tests share: certificates, an administrator of the simulator, a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import subprocess
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import SoapStubAdapter, vim, vmodl
from vcsim import Simulator

from cuckoo_api.machinery import BackendConfig, MachineConfig, Secret
from cuckoo_machinery_vsphere.backend import VsphereBackend
from cuckoo_machinery_vsphere.plugin import OPTIONS
from cuckoo_machinery_vsphere.session import VERSION

USER, PASSWORD = "cuckoo@vsphere.local", "pa55-w0rd<&>"
SNAPSHOT = "clean"
ONE, TWO = "DC0_H0_VM0", "DC0_H0_VM1"


@dataclass(frozen=True)
class Certificate:
    """A server's, with the authority that signed it."""

    server: Path
    """PEM: key and certificate."""
    authority: Path
    """PEM: the authority's certificate."""

    @property
    def thumbprint(self) -> str:
        text = self.server.read_text()
        der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])
        return hashlib.sha256(der).hexdigest()


def certificate(folder: Path, name: str = "IP:127.0.0.1") -> Certificate:
    """A new authority, and a certificate of its for a server of this name."""
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    ca = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    leaf = ["-addext", f"subjectAltName={name}", "-addext", "basicConstraints=critical,CA:FALSE"]
    _openssl(folder, "ca", *key, "-subj", "/CN=authority", *ca)
    _openssl(
        folder, "leaf", *key, "-subj", "/CN=server", *leaf, "-CA", "ca.pem", "-CAkey", "ca.key"
    )
    server = folder / "server.pem"
    server.write_text((folder / "leaf.key").read_text() + (folder / "leaf.pem").read_text())
    return Certificate(server, folder / "ca.pem")


def _openssl(folder: Path, name: str, *words: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-keyout", f"{name}.key", "-out", f"{name}.pem", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


class Admin:
    """Somebody else who is logged in, and does what the backend does not know of."""

    def __init__(self, port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._stub = SoapStubAdapter(
            host="127.0.0.1", port=port, version=VERSION, sslContext=context
        )
        self.content = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent()
        self.content.sessionManager.Login(USER, PASSWORD)

    def all(self, kind: Any = vim.VirtualMachine) -> dict[str, Any]:
        """All of this kind, by name."""
        root = self.content.rootFolder
        view = self.content.viewManager.CreateContainerView(root, [kind], True)
        return {found.name: found for found in view.view}

    def machine(self, name: str = ONE) -> Any:
        return self.all()[name]

    def done(self, task: Any) -> Any:
        """The result of a task."""
        collector = self.content.propertyCollector.CreatePropertyCollector()
        kinds = [vmodl.query.PropertyCollector.PropertySpec(type=vim.Task, pathSet=["info"])]
        objects = [vmodl.query.PropertyCollector.ObjectSpec(obj=task)]
        collector.CreateFilter(
            vmodl.query.PropertyCollector.FilterSpec(propSet=kinds, objectSet=objects), False
        )
        version = ""
        while task.info.state not in {"success", "error"}:
            version = collector.WaitForUpdatesEx(version).version
        assert task.info.state == "success", task.info.error
        return task.info.result

    def snapshot(self, name: str = ONE, called: str = SNAPSHOT, *, running: bool = True) -> Any:
        """Take one of a running machine, with its memory, or of one that is off; it is off then."""
        return self.snapshot_of(self.machine(name), called, running=running)

    def snapshot_of(self, machine: Any, called: str = SNAPSHOT, *, running: bool = True) -> Any:
        if running:
            self.done(machine.PowerOn())
        made = self.done(machine.CreateSnapshot_Task(called, "", running, False))
        if running:
            self.done(machine.PowerOff())
        return made

    def clone(self, name: str, called: str) -> None:
        machine = self.machine(name)
        place = vim.vm.RelocateSpec(pool=self.all(vim.ResourcePool)["Resources"])
        spec = vim.vm.CloneSpec(location=place)
        self.done(machine.CloneVM_Task(machine.parent, called, spec))

    def end_session(self, key: str) -> None:
        self.content.sessionManager.TerminateSession([key.strip('"')])

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the simulator may have ended
            self.content.sessionManager.Logout()
        self._stub.DropConnections()


def told(error: BaseException) -> str:
    """All that a log could show of an error: its causes, their frames, and what these hold."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(shown.format())


def snapshots(machine: Any) -> list[str]:
    """The names of a machine's snapshots."""
    names, left = [], list(machine.snapshot.rootSnapshotList) if machine.snapshot else []
    while left:
        tree = left.pop()
        names.append(tree.name)
        left += tree.childSnapshotList
    return sorted(names)


def config(folder: Path, port: int, *labels: str, **options: str) -> BackendConfig:
    """A backend's configuration; ``options`` are keys of ``[vsphere]``."""
    own = {option.name: option.default for option in OPTIONS}
    own |= {"host": "127.0.0.1", "port": str(port), "user": USER, "pwd": Secret(PASSWORD)}
    machines = tuple(
        MachineConfig(label=label, name=f"machine{number}", snapshot=SNAPSHOT)
        for number, label in enumerate(labels or (ONE, TWO))
    )
    return BackendConfig(name="vsphere", machines=machines, state_dir=folder, options=own | options)


class Wire:
    """A port of the host that leads to the simulator, unless it is cut or held."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close the port and all connections that lead through it."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop()

    async def drop(self) -> None:
        """Break all connections; new ones may be made at once."""
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            self._writers.discard(far_writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass(frozen=True)
class Site:
    """A simulator with its administrator."""

    simulator: Simulator
    admin: Admin
    certificate: Certificate


Simulate = Callable[..., Site]
"""``(*words, shown=certificate)``: start a simulator."""
Make = Callable[..., Awaitable[VsphereBackend]]
"""``(site, *labels, port=..., **options)``: open a backend."""
