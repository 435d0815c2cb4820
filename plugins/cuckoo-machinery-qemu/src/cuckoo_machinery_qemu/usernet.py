"""Guests without any rights of ours: each QEMU in a user and network namespace of its own.

QEMU's user-mode network would let a guest reach every service of the host's loopback and
whatever the host reaches. In an empty network namespace there is nothing to reach, except the
ports on which a small relay, in the same namespace, passes connections on to unix sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cuckoo_api.machinery import BadConfig, GuestAddress, Service
from cuckoo_machinery_qemu.bridge import AGENT_PORT
from cuckoo_machinery_qemu.spec import Place

_SYSTEM_PYTHON = "/usr/bin/python3"
_NAMESPACES = "/proc/sys/kernel/unprivileged_userns_clone"


class UserNetwork:
    """A relay and a namespace for each machine; no rights needed."""

    kind = "user"

    def __init__(
        self,
        machines: Sequence[Place],
        services: Sequence[Service],
        uid_base: int,
        note: Path,
    ) -> None:
        """``note`` is where it is kept which folder is ours, for the one who comes after us."""
        self._machines = machines
        self._services = services
        self._uid_base = uid_base
        self._note = note
        self._folder: Path | None = None

    async def open(self) -> None:
        """Make the private folder for the sockets. Raises BadConfig where namespaces are shut."""
        if not shutil.which("unshare"):
            raise BadConfig("unshare is not installed (apt-get install util-linux)")
        switch = Path(_NAMESPACES)
        if os.geteuid() and switch.exists() and switch.read_text().strip() == "0":
            raise BadConfig(
                "user namespaces are shut on this host: run the server as root, or as root run "
                "'sysctl kernel.unprivileged_userns_clone=1'"
            )
        await asyncio.to_thread(self._remove)
        # a unix socket's path has 107 bytes at most: not below the working directory
        self._folder = Path(tempfile.mkdtemp(prefix="cuckoo-"))
        await asyncio.to_thread(self._furnish, self._folder)

    def _furnish(self, folder: Path) -> None:
        self._note.symlink_to(folder)
        folder.chmod(0o711)
        for place in self._machines:
            own = folder / str(place.index)
            own.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(own, self._uid_base + place.index, self._uid_base + place.index)

    async def close(self) -> None:
        """Remove the sockets. Raises nothing."""
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        """Remove the folder that is noted, ours or that of a process which was killed."""
        if self._note.is_symlink():
            shutil.rmtree(self._note.readlink(), ignore_errors=True)
            self._note.unlink()

    def address(self, place: Place, port: int) -> GuestAddress:
        """The agent behind a socket, and a socket for each service."""
        return GuestAddress(
            f"unix:{self._socket(place, 'agent')}",
            place.gateway,
            port,
            {service.name: self._socket(place, service.name) for service in self._services},
        )

    def launcher(self, place: Place) -> list[str]:
        """The words before QEMU's own: a namespace, a relay in it, then QEMU in our place."""
        # as text: an unprivileged user id may not be able to read where we are installed
        program = Path(__file__).with_name("relay.py").read_text(encoding="utf-8")
        python = sys.executable
        if os.geteuid() == 0 and Path(_SYSTEM_PYTHON).is_file():
            python = _SYSTEM_PYTHON
        return [
            *("unshare", "--user", "--map-root-user", "--net", "--"),
            *(python, "-I", "-S", "-c", program, str(os.getpid())),
            f"agent={self._socket(place, 'agent')}:{AGENT_PORT}",
            *(f"{s.protocol}={self._socket(place, s.name)}:{s.port}" for s in self._services),
            "--",
        ]

    async def disconnect(self, place: Place) -> None:
        """All has gone with its QEMU."""

    @contextlib.asynccontextmanager
    async def connect(self, place: Place) -> AsyncIterator[tuple[str, list[int]]]:
        """QEMU's ``-netdev``; it needs no descriptor."""
        agent = f"tcp:127.0.0.1:{AGENT_PORT}-{place.ip}:{AGENT_PORT}"
        subnet = f"net={place.gateway}/24,host={place.gateway}"
        yield f"user,id=net0,ipv6=off,{subnet},hostfwd={agent}", []

    def _socket(self, place: Place, service: str) -> Path:
        if self._folder is None:
            raise BadConfig(f"{place.label}: the network is not open")
        return self._folder / str(place.index) / service
