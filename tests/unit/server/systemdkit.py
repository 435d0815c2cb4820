"""What stands in for systemd: it listens, starts the server, hears what it says, starts it anew."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from probekit import PATIENCE

HIGH = 20
"""Descriptors from here on are nobody's, in a process that has just been started."""


class Listener:
    """A NOTIFY_SOCKET, and what was said to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)
        self.said: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next(self) -> dict[str, str]:
        """What is said next."""
        words = self._socket.recv(4096).decode().split("\n")
        self.said.append(dict(word.split("=", 1) for word in words))
        return self.said[-1]

    def until(self, name: str) -> dict[str, str]:
        """Hear until this is said."""
        while name not in (message := self.next()):
            pass
        return message

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing is said for so long; what was said before is forgotten."""
        while select.select([self._socket], [], [], 0)[0]:
            self.next()
        return not select.select([self._socket], [], [], seconds)[0]


class Service:
    """The server as systemd would run it, in a process of its own."""

    def __init__(
        self, cwd: Path, *words: str, sockets: list[socket.socket], watchdog: float = 0
    ) -> None:
        self._words = ["--cwd", str(cwd), *words]
        self._sockets = sockets
        self._watchdog = watchdog
        self._stack = ExitStack()
        self.listener = self._stack.enter_context(Listener(cwd / "notify.sock"))
        self._log = self._stack.enter_context((cwd / "server.log").open("wb"))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._stack.close()

    @property
    def log(self) -> str:
        """What it has logged."""
        return Path(self._log.name).read_text()

    def start(self) -> dict[str, str]:
        """Start it; what it says once it is ready."""
        self.launch()
        return self.listener.until("READY")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it."""
        copies = [fcntl.fcntl(one, fcntl.F_DUPFD, HIGH) for one in self._sockets]
        moves = "".join(f" {3 + n}<&{copy} {copy}<&-" for n, copy in enumerate(copies))
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.listener.path),
            "LISTEN_FDS": str(len(copies)),
        }
        if self._watchdog:
            environment["WATCHDOG_USEC"] = str(int(self._watchdog * 1e6))
        self.process = subprocess.Popen(
            # the numbers must be right, and so must be the pid
            ["bash", "-c", f'LISTEN_PID=$$ exec "$@"{moves}', "bash", sys.executable,
             "-m", "cuckoo_api", *self._words],
            env=environment, pass_fds=copies, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        for copy in copies:
            os.close(copy)
        return self.process

    def stop(self) -> int:
        """End it as systemd does; its exit code."""
        return self.signal(signal.SIGTERM).wait(PATIENCE)

    def signal(self, number: signal.Signals) -> subprocess.Popen[bytes]:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process


def listening(where: str | Path) -> socket.socket:
    """A socket that systemd listens on: TCP at an address, or unix at a path."""
    if isinstance(where, str):
        return socket.create_server((where, 0), backlog=1024)
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(where))
    made.listen(1024)
    return made
