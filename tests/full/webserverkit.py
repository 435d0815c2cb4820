"""nginx and uWSGI as Debian has them, with their files and sockets in a place of a test's own."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from freshenv import FreshEnvironment
from serverkit import configure

from pagekit import Reader

PATIENCE = 30.0
SITE = "cuckoo-api"
READY = "(mountpoint='') ready in"
"""What uWSGI says of a worker that serves."""
HOME = "/srv/cuckoo"
"""Where the pages have the working directory."""
PRIVATE = (
    "/run",
    "/var/log",
    "/var/lib/nginx",
    "/etc/nginx/sites-available",
    "/etc/nginx/sites-enabled",
    "/etc/uwsgi/apps-available",
    "/etc/uwsgi/apps-enabled",
    "/srv",
)
"""Folders of Debian's that the programs see empty, and write to."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came over one connection, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class WebHost:
    """A machine of its own, as far as a web server sees: an installation and Debian's programs."""

    def __init__(self, folder: Path, environment: FreshEnvironment) -> None:
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        self.port = free_port()
        self.environment = environment
        self._desk = folder / "reader"
        self._workers = 0
        places = " && ".join(f"mount -t tmpfs none {place}" for place in PRIVATE)
        folders = f"mkdir -p /var/log/nginx /var/log/uwsgi/app /run/cuckoo {HOME}"
        folders += f" && mount --bind {self.cwd} {HOME}"
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
                f"{places} && {folders} && echo ready && exec sleep infinity",
            ],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.cuckoo("init")
        values = {"cuckoo.machinery": "", "cuckoo.freespace": "64", "api.port": str(self.port)}
        configure(self.cwd, "cuckoo", values)
        conf = (self.cwd / "conf" / "cuckoo.conf").read_text()
        [self.token] = re.findall(r"^api_token\s*=\s*(\S+)", conf, re.MULTILINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_nginx()
        self.stop_uwsgi()
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    # -- commands -------------------------------------------------------------------------------

    def inside(self, *command: str) -> list[str]:
        """The words that run a command in here."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """A command's output."""
        done = subprocess.run(
            self.inside(*command), capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def cuckoo(self, *words: str) -> str:
        """The installation's command."""
        return self.run(*self.environment.cuckoo, "--cwd", str(self.cwd), *words)

    def reader(self) -> Reader:
        """Somebody who sits before it, with these pages."""
        path = f"{self.environment.folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "CUCKOO_CWD": HOME}
        return Reader(self._desk, inside=self.inside(), environment=environment)

    def path(self, inside: str) -> Path:
        """A path in here, as it is seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    # -- web servers ----------------------------------------------------------------------------

    def start_uwsgi(self, *change: tuple[str, str]) -> None:
        """Do what the printed file says, by Debian's own script."""
        ini = self.cuckoo("api", "--uwsgi")
        for old, new in change:
            assert old in ini
            ini = ini.replace(old, new)
        self.path(f"/etc/uwsgi/apps-enabled/{SITE}.ini").write_text(ini)
        [workers] = re.findall(r"^workers = (\d+)$", ini, re.MULTILINE)
        self._workers = int(workers)
        self.run("/etc/init.d/uwsgi", "start", SITE)
        self.until_said(READY, self._workers)

    def stop_uwsgi(self) -> None:
        """As at a shutdown."""
        self.run("/etc/init.d/uwsgi", "stop", SITE, check=False)

    def reload_uwsgi(self) -> None:
        """Replace its workers, and return when the new ones serve."""
        served = self.api_log().count(READY)
        self.run("/etc/init.d/uwsgi", "reload", SITE)
        self.until_said(READY, served + self._workers)

    def until_said(self, words: str, times: int = 1) -> None:
        """Until the log has these words so often."""
        deadline = time.monotonic() + PATIENCE
        while self.api_log().count(words) < times:
            assert time.monotonic() < deadline, self.api_log()
            time.sleep(0.02)

    def until_served(self) -> None:
        """Until nginx listens: a reload of its own returns before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def start_nginx(self, *options: str, change: Sequence[tuple[str, str]] = ()) -> None:
        """Do what the printed site says, with Debian's own nginx.conf."""
        site = self.cuckoo("api", "--nginx", *options)
        for old, new in change:
            assert old in site
            site = site.replace(old, new)
        self.path(f"/etc/nginx/sites-enabled/{SITE}").write_text(site)
        self.run("nginx", "-t")
        self.run("nginx")

    def stop_nginx(self) -> None:
        """At once."""
        pid = self.path("/run/nginx.pid")
        if not pid.exists() or not pid.read_text().strip():
            return
        self.run("nginx", "-s", "stop")
        deadline = time.monotonic() + PATIENCE
        while pid.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def api_log(self) -> str:
        """What the API has logged, in uWSGI's log or in a terminal."""
        logs = (self.path(f"/var/log/uwsgi/app/{SITE}.log"), *self._desk.glob("home/server-*.log"))
        return "".join(log.read_text() for log in logs if log.exists())

    def peak(self, program: str) -> int:
        """The most memory, in bytes, that any process of such a name in here has had."""
        found = [0]
        here = Path(f"/proc/{self._holder.pid}/ns/mnt").stat().st_ino
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "ns/mnt").stat().st_ino != here:
                    continue
                if program in (process / "cmdline").read_text():
                    [kib] = re.findall(r"VmHWM:\s+(\d+)", (process / "status").read_text())
                    found.append(int(kib) << 10)
            except (OSError, ValueError):
                continue  # it has ended
        return max(found)

    # -- clients --------------------------------------------------------------------------------

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        """To nginx, from this address of the loopback."""
        return socket.create_connection(
            ("127.0.0.1", self.port), PATIENCE, source_address=(address, 0)
        )

    def head(self, line: str, **headers: object) -> bytes:
        """A request's head with the token."""
        fields = {"Host": "localhost", "Authorization": f"Bearer {self.token}", **headers}
        lines = [f"{line} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def ask(self, line: str, address: str = "127.0.0.1", **headers: object) -> Reply:
        """A request without a body."""
        with self.connect(address) as connection:
            connection.sendall(self.head(line, **headers))
            return read_reply(connection)


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_reply(connection: socket.socket, *, into: hashlib._Hash | None = None) -> Reply:
    """One answer; its body is only hashed where there is something to hash ``into``."""
    stream = connection.makefile("rb")
    line = stream.readline()
    assert line, "the connection was closed without an answer"
    headers = {}
    while field := stream.readline().strip():
        name, _, value = field.decode().partition(":")
        headers[name.lower()] = value.strip()
    body, left = bytearray(), int(headers["content-length"])
    while left:
        data = stream.read(min(left, 1 << 20))
        assert data, f"{left} bytes are missing"
        left -= len(data)
        if into is None:
            body += data
        else:
            into.update(data)
    return Reply(int(line.split()[1]), headers, bytes(body))


@dataclass
class Probe:
    """Clients that ask all the time, and repeat nothing: a request that failed has failed."""

    host: WebHost
    clients: int = 6
    seen: Counter[str] = field(default_factory=Counter)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number in range(self.clients):
            # half of them keep their connection
            thread = threading.Thread(target=self._ask, args=(bool(number % 2),))
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def until_answered(self, more: int) -> None:
        """Until so many more have been answered."""
        wanted, deadline = self.seen.total() + more, time.monotonic() + PATIENCE
        while self.seen.total() < wanted:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.02)

    def _ask(self, keep: bool) -> None:
        head = self.host.head("GET /tasks/list/1", Connection="keep-alive" if keep else "close")
        connection: socket.socket | None = None
        while not self._end.is_set():
            try:
                connection = connection or self.host.connect()
                connection.sendall(head)
                reply = read_reply(connection)
                self.seen[str(reply.status)] += 1
                closed = reply.headers.get("connection") == "close"
            except (OSError, AssertionError) as exc:
                self.seen[f"{type(exc).__name__}: {exc}"] += 1
                closed = True
            if connection is not None and (closed or not keep):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()
