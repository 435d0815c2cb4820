"""A guest, a host and the internet, each a network namespace, and what is seen on the wires.

::

    guest(s) --- host --- uplink --- internet     a web server at WEB tells the address that it saw
                   |                    |
                   +----- wan ------ provider     the far end of tunnels

The host reaches the provider by a wire of its own, so whatever is seen on the uplink went out as
it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BRIDGE = "guests0"
GATEWAY = "192.168.156.1"
WEB = "203.0.113.80"
"""Both ways lead there."""
UPLINK_ADDRESS = "198.51.100.2"
PROVIDER = "10.99.0.1"
METADATA = "169.254.169.254"
PATIENCE = 10.0
ROUTING = f"""
[routing]
internet = uplink
drop = yes
dns = 203.0.113.80
[rooter]
user = nobody
interfaces = {BRIDGE}
"""
Start = Callable[..., subprocess.Popen[bytes]]

WEB_SERVER = f"""
import http.server, socket, socketserver, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("{WEB}", 53))
def echo():
    while True:
        data, who = udp.recvfrom(2048)
        udp.sendto(data + who[0].encode(), who)
threading.Thread(target=echo, daemon=True).start()
server = http.server.ThreadingHTTPServer(("{WEB}", 80), Handler)
print("ready", flush=True)
server.serve_forever()
"""
BLASTER = """
import itertools, socket, sys, time
marker, targets = sys.argv[1].encode(), sys.argv[2:]
udp = socket.socket(type=socket.SOCK_DGRAM)
icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
print("ready", flush=True)
for number in itertools.count():
    for target in targets:
        for send in (
            lambda: udp.sendto(marker, (target, 53)),
            lambda: udp.sendto(marker, (target, 4444)),
            lambda: icmp.sendto(b"\\x08\\x00" + bytes(6) + marker, (target, 0)),
        ):
            try:
                send()
            except OSError:
                pass  # the way is shut just now
        with socket.socket() as tcp:
            tcp.setblocking(False)
            try:
                tcp.connect((target, 80))
            except OSError:
                pass
    time.sleep(0.005)
"""


class Lab:
    """The namespaces of one test. What is started in them ends with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tag = secrets.token_hex(3)
        """In the names of what the whole machine sees."""
        self._mark = f"ckn{self.tag}"
        self._names: dict[str, str] = {}
        self._started: list[subprocess.Popen[bytes]] = []

    # -- namespaces -----------------------------------------------------------------------------

    def add(self, name: str) -> None:
        """A new namespace, whose loopback is up."""
        self._names[name] = f"{self._mark}{name}"
        command("ip", "netns", "add", self._names[name])
        self.ip(name, "link set lo up")

    def namespace(self, name: str) -> str:
        """Its name among those of the whole machine."""
        return self._names[name]

    def inside(self, name: str) -> list[str]:
        """The words that run a command there."""
        return ["ip", "netns", "exec", self._names[name]]

    def ip(self, name: str, *lines: str) -> None:
        """What iproute2 is to do there, line by line, in one go."""
        command("ip", "-n", self._names[name], "-batch", "-", stdin="\n".join(lines) + "\n")

    def run(self, name: str, *words: str, stdin: str = "") -> str:
        """A command's output; it may not fail."""
        return command(*self.inside(name), *words, stdin=stdin)

    def fails(self, name: str, *words: str) -> str:
        """What a command that fails says."""
        done = subprocess.run([*self.inside(name), *words], capture_output=True, text=True)
        assert done.returncode, done.stdout
        return done.stderr

    def spawn(self, name: str, *words: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start something that goes on; ``log`` gets what it prints, else its pipe."""
        output = subprocess.PIPE if log is None else log.open("ab")
        started = subprocess.Popen(
            [*self.inside(name), *words],
            stdout=output,
            stderr=None if log is None else output,
            bufsize=0,  # what has come can be waited for
        )
        if log is not None:
            output.close()  # type: ignore[union-attr]
        self._started.append(started)
        return started

    def python(self, name: str, program: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program that says when it is ready."""
        started = self.spawn(name, sys.executable, "-c", program, *words)
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        return started

    def link(self, one: str, name: str, address: str, two: str, there: str, its: str) -> None:
        """A wire between two namespaces."""
        peer = f"peer name {there} netns {self._names[two]}"
        self.ip(one, f"link add {name} type veth {peer}")
        for namespace, called, own in ((one, name, address), (two, there, its)):
            has = [f"address add {own} dev {called}"] if own else []
            self.ip(namespace, *has, f"link set {called} up")

    def guest(self, number: int) -> str:
        """Another guest; its namespace's name. Its address is ``guest_ip(number)``."""
        name = f"g{number}"
        self.add(name)
        self.link(name, "eth0", f"{guest_ip(number)}/24", "host", f"tap{number}", "")
        self.ip("host", f"link set tap{number} master {BRIDGE}")
        self.ip(name, f"route add default via {GATEWAY}")
        return name

    def pids(self, name: str, program: str) -> list[int]:
        """The processes in a namespace whose command line has this in it."""
        found = [int(pid) for pid in command("ip", "netns", "pids", self._names[name]).split()]
        return [p for p in found if program in Path(f"/proc/{p}/cmdline").read_text()]

    def close(self) -> None:
        """End every process in the namespaces, and the namespaces."""
        for name in self._names.values():
            pids = command("ip", "netns", "pids", name).split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for started in self._started:
            started.kill()
            started.wait()
            if started.stdout is not None:
                started.stdout.close()
        for name in self._names.values():
            command("ip", "netns", "delete", name)
        for socket in Path("/run/wireguard").glob(f"*{self.tag}.sock"):
            socket.unlink()  # of a wireguard-go that was killed

    # -- what is seen ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture(
        self, name: str, interface: str, what: str = ""
    ) -> Iterator[Callable[[], list[str]]]:
        """Everything on an interface; the function gives the lines of tcpdump so far."""
        log = self.folder / f"capture-{secrets.token_hex(3)}"
        words = ["tcpdump", "-n", "-l", "-A", "--immediate-mode", "-i", interface, *what.split()]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.inside(name), *words], stdout=file, stderr=subprocess.PIPE
            )
            self._started.append(process)
            assert process.stderr is not None
            while b"listening on" not in process.stderr.readline():
                assert process.poll() is None
            try:
                yield lambda: log.read_text(errors="replace").splitlines()
            finally:
                process.terminate()
                process.wait()
                process.stderr.close()

    def seen_by_web(self, name: str, *, seconds: int = 2) -> str:
        """The address from which the web server sees a namespace; empty: it does not."""
        done = subprocess.run(
            [*self.inside(name), "curl", "-s", "-m", str(seconds), f"http://{WEB}/"],
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    def rules(self) -> list[dict[str, Any]]:
        """The host's routing rules."""
        found: list[dict[str, Any]] = json.loads(self.run("host", "ip", "-json", "rule"))
        return found


def guest_ip(number: int) -> str:
    """The address of a guest."""
    return f"192.168.156.{100 + number}"


def internet(folder: Path) -> Lab:
    """A lab with the host, the provider and the internet; no guest yet."""
    lab = Lab(folder)
    try:
        for name in ("host", "provider", "web"):
            lab.add(name)
        lab.ip(
            "host",
            f"link add {BRIDGE} type bridge",
            f"address add {GATEWAY}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        lab.link("host", "uplink", f"{UPLINK_ADDRESS}/24", "web", "plain", "198.51.100.10/24")
        lab.link("host", "wan", "10.99.0.2/24", "provider", "wan", f"{PROVIDER}/24")
        lab.link("provider", "out", "203.0.113.1/24", "web", "tunnelled", "203.0.113.10/24")
        lab.ip(
            "web",
            f"address add {WEB}/32 dev lo",
            f"route add 192.168.156.0/24 via {UPLINK_ADDRESS}",
        )
        lab.ip("host", "route add default via 198.51.100.10")
        lab.ip("provider", "route add default via 203.0.113.10")
        for name in ("provider", "web"):
            lab.run(name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        lab.python("web", WEB_SERVER)
    except BaseException:
        lab.close()
        raise
    return lab


def run_rooter(lab: Lab, cwd: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """``cuckoo rooter`` on the host, with CAP_NET_ADMIN and no other right, once it listens.

    Not even root's files are open to it where they are another account's.
    """
    begin = log.stat().st_size if log.exists() else 0
    started = lab.spawn(
        "host", "setpriv", "--inh-caps=-all,+net_admin", "--bounding-set=-all,+net_admin",
        "--", "env", "PYTHONFAULTHANDLER=1",
        sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd), "rooter", *words, log=log,
    )  # fmt: skip

    def ready() -> bool:
        said = log.read_text()[begin:]
        assert started.poll() is None, said
        return "The rooter listens" in said

    until(ready, "the rooter")
    return started


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.02)
    return found


def command(*words: str, stdin: str = "") -> str:
    """A command's output; it may not fail."""
    done = subprocess.run(words, capture_output=True, text=True, input=stdin)
    assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
    return done.stdout


def lines_with(lines: Sequence[str], marker: str) -> list[str]:
    """Those lines of a capture that hold the marker."""
    return [line for line in lines if marker in line]
