"""What a parser that was taken over tries in its process, really, and what comes of it."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.confinement import confinement, landlock, seccomp
from cuckoo_api.model.task import Task
from cuckoo_api.reporting.child import ENVIRONMENT
from cuckoo_api.reporting.service import make_report
from cuckoo_api.settings import ProcessingSection

pytestmark = pytest.mark.slow

TASK = Task(id=7, category="file", target="/x/sample.sh", added_on="2026-01-01 00:00:00")
HOLDING = frozenset(layer.name for layer in confinement() if layer.holds)
IS_ROOT = os.geteuid() == 0

HOSTILE = """
import ctypes, json, os, platform, resource, signal, socket, subprocess, sys, threading, types
from pathlib import Path
from cuckoo_api.confinement import landlock, seccomp
from cuckoo_api.reporting.sections import PROCESSORS
from cuckoo_api.reporting.worker import main

cwd, folder = Path({cwd!r}), Path({folder!r})
column = ["x86_64", "aarch64"].index(platform.machine())

def call(numbers, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(numbers[column], *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def outcomes(attempts):
    found = {{}}
    for name, code in attempts.items():
        try:
            exec(code)
        except Exception as exc:
            found[name] = type(exc).__name__
        else:
            found[name] = "done"
    (folder / "reports" / "outcomes").write_text(json.dumps(found))

def attempt(evidence, job, notes):
    {attempt}
    return {{}}

for layer, function, nothing in (
    ("landlock", landlock, lambda *_: False), ("seccomp", seccomp, lambda: False)
):
    if layer not in {layers!r}:
        setattr(function, "restrict" if layer == "landlock" else "install", nothing)
sys.modules["hostile"] = types.ModuleType("hostile")
sys.modules["hostile"].run = attempt
main({{**PROCESSORS, "static": "hostile"}})
"""


def since(version: int) -> str:
    """Landlock, where the kernel's is of this version; else a layer that nobody has."""
    return "landlock" if landlock.version() >= version else "a later landlock"


USER = "limits" if not IS_ROOT else "an ordinary user"
"""What only an ordinary user's worker is refused without more."""
ROOT = "limits" if IS_ROOT else "root"
"""What root's worker is refused for the capabilities that it gave up."""

ATTEMPTS = {
    "opens a socket": ("socket.socket()", {"seccomp"}),
    "connects": ("socket.create_connection(('127.0.0.1', 9), 1)", {"seccomp", since(4)}),
    "reaches a unix socket": ("socket.socket(socket.AF_UNIX)", {"seccomp"}),
    "sends raw packets": (
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", {"seccomp", "limits"},
    ),
    "reads the token": ("(cwd / 'conf' / 'cuckoo.conf').read_text()", {"landlock"}),
    "reads the passwords": ("Path('/etc/shadow').read_text()", {"landlock", USER}),
    "lists the host's files": ("os.listdir('/')", {"landlock"}),
    "reads another analysis": (
        "(folder.parent / '8' / 'report.json').read_text()", {"landlock"},
    ),
    "reads the server's memory": (
        "Path(f'/proc/{os.getppid()}/mem').open('rb')", {"landlock", ROOT},
    ),
    "reads the server's environment": (
        "Path(f'/proc/{os.getppid()}/environ').read_bytes()", {"landlock", ROOT},
    ),
    "writes beside its folder": (
        "(cwd / 'signatures' / 'mine.py').write_text('')", {"landlock"},
    ),
    "writes what was traced": ("(folder / 'logs' / 'all.strace').write_text('')", {"landlock"}),
    "writes over the sample": (
        "(folder / 'binary').write_text('#!/bin/sh\\necho hello\\n')", {"landlock"},
    ),
    "makes a file elsewhere": ("(cwd / 'x').write_text('x')", {"landlock"}),
    "makes a file readable": ("(folder / 'reports').chmod(0o750)", {"seccomp"}),
    "makes a link": ("(folder / 'reports' / 'x').symlink_to('/etc')", {"seccomp", "landlock"}),
    "starts a program": ("os.execv('/nothing', ['nothing'])", {"seccomp"}),
    "starts one beside itself": ("subprocess.run(['/bin/true'])", {"seccomp", "landlock"}),
    "forks": ("os.fork() or os._exit(0)", {"seccomp"}),
    "signals the server": ("os.kill(os.getppid(), 0)", {"seccomp", since(6)}),
    "signals every process": ("os.kill(-1, 0)", {"seccomp"}),
    "limits the server": ("resource.prlimit(os.getppid(), 7)", {"seccomp"}),
    "shares memory": ("call((29, 194), 0, 4096, 0o1600)", {"seccomp"}),
    "raises its own limits": (
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", {"limits"},
    ),
    "becomes another user": ("os.setuid(os.getuid() + 1)", {"seccomp", "limits"}),
}  # fmt: skip
"""What is tried, and the layers of which each alone refuses it."""

DEADLY = {
    "traces the server": "call((101, 117), 16, os.getppid(), 0, 0)",
    "reads the server": "call((310, 270), os.getppid(), 0, 0, 0, 0, 0)",
    "mounts": "call((165, 40), 0, 0, 0, 0, 0)",
    "gets a namespace": "call((272, 97), 0x10000000)",
    "loads a program into the kernel": "call((321, 280), 0, 0, 0)",
    "uses io_uring": "call((425, 425), 8, 0)",
    "asks for keys": "call((250, 219), 0, 0, 0)",
}
EVERY = frozenset({"limits", "seccomp", "landlock"})


class Worker:
    """A server's working directory with an analysis, whose parser for one part is hostile."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.folder = cwd / "storage" / "analyses" / "7"
        for name in ("logs", "reports", "network"):
            (self.folder / name).mkdir(parents=True)
        other = self.folder.parent / "8"
        for path in (cwd / "conf", cwd / "signatures", cwd / "storage" / "binaries", other):
            path.mkdir()
        (cwd / "conf" / "cuckoo.conf").write_text("[cuckoo]\napi_token = secret\n")
        (other / "report.json").write_text("{}")
        (self.folder / "logs" / "all.strace").write_text("")
        (cwd / "storage" / "binaries" / "sample").write_bytes(b"#!/bin/sh\necho hello\n")
        (self.folder / "binary").symlink_to("../../binaries/sample")

    def report(self, attempt: str, layers: frozenset[str] = EVERY) -> dict[str, Any]:
        """The report that is made all the same."""
        code = HOSTILE.format(
            cwd=str(self.cwd), folder=str(self.folder), attempt=attempt, layers=sorted(layers)
        )
        worker = (sys.executable, "-c", code)
        limits = ProcessingSection()
        asyncio.run(
            make_report(self.folder, TASK, None, limits, self.cwd, html=False, worker=worker)
        )
        made: dict[str, Any] = json.loads((self.folder / "reports" / "report.json").read_bytes())
        assert made["strings"] == ["#!/bin/sh", "echo hello"], "the rest of the report is there"
        return made

    def errors(self, attempt: str) -> list[str]:
        """What the report says of the hostile part."""
        said: list[str] = self.report(attempt)["debug"]["errors"]
        return [line for line in said if line.startswith("static: ")]


@pytest.fixture
def hostile(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


Outcomes = Callable[[frozenset[str]], dict[str, str]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What comes of all attempts in a process with these layers."""
    known: dict[frozenset[str], dict[str, str]] = {}
    attempts = {name: code for name, (code, _) in ATTEMPTS.items()}

    def ask(layers: frozenset[str]) -> dict[str, str]:
        if layers not in known:
            worker = Worker(tmp_path_factory.mktemp("cwd"))
            worker.report(f"outcomes({attempts!r})", layers)
            known[layers] = json.loads((worker.folder / "reports" / "outcomes").read_text())
        return known[layers]

    return ask


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("layers", [EVERY, EVERY - {"seccomp"}, EVERY - {"landlock"}, {"limits"}])
def test_each_layer_alone_refuses_what_it_is_there_to_refuse(
    outcomes: Outcomes, layers: frozenset[str], attempt: str
) -> None:
    """And that it is the layer which refuses: without it, it is done or fails otherwise."""
    outcome = outcomes(frozenset(layers))[attempt]
    # Python's word for a limit that cannot be raised is ValueError
    is_refused = outcome in {"PermissionError", "ValueError"}
    assert is_refused == bool(ATTEMPTS[attempt][1] & layers & HOLDING), outcome


def test_what_it_is_refused_costs_its_own_part(hostile: Worker) -> None:
    assert hostile.errors("os.fork()") == [
        "static: PermissionError: [Errno 1] Operation not permitted"
    ]


@pytest.mark.parametrize("attempt", DEADLY.values(), ids=DEADLY)
def test_what_no_honest_parser_does_ends_the_process_and_not_the_report(
    hostile: Worker, attempt: str
) -> None:
    assert "seccomp" in HOLDING
    assert hostile.errors(attempt) == ["static: the worker was ended by SIGSYS"]


def test_it_may_have_threads_and_write_its_report(hostile: Worker) -> None:
    assert not hostile.errors(
        "t = threading.Thread(target=(folder / 'reports' / 'x').write_text, args=('x',));"
        " t.start(); t.join(); (folder / 'reports' / 'x').unlink()"
    )


def test_a_folder_for_results_that_is_missing_is_made_before(hostile: Worker) -> None:
    (hostile.folder / "network").rmdir()
    assert not hostile.errors("(folder / 'network' / 'x').write_text('x')")


def test_a_link_in_the_place_of_such_a_folder_opens_nothing(
    hostile: Worker, tmp_path: Path
) -> None:
    (hostile.folder / "network").rmdir()
    (hostile.folder / "network").symlink_to(tmp_path / "conf")
    is_refused = bool(hostile.errors("(folder / 'network' / 'x').write_text('x')"))
    assert is_refused == ("landlock" in HOLDING)


def test_it_inherits_no_variable_of_the_server_s(
    hostile: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUCKOO_TOKEN", "secret")
    hostile.report("(folder / 'reports' / 'x').write_text(json.dumps(dict(os.environ)))")
    found = json.loads((hostile.folder / "reports" / "x").read_text())
    assert {**found, **ENVIRONMENT} == found
    assert set(found) - set(ENVIRONMENT) <= {"LC_CTYPE"}  # which Python sets itself


def test_a_root_s_worker_has_one_of_root_s_rights(hostile: Worker) -> None:
    """To open files of other users, below what Landlock leaves."""
    status = "open('/proc/self/status').read().split('CapEff:')[1].split()[0]"
    hostile.report(f"(folder / 'reports' / 'rights').write_text({status})", EVERY - {"landlock"})
    rights = int((hostile.folder / "reports" / "rights").read_text(), 16)
    assert rights in ({0, 1 << 1} if IS_ROOT else {0})


@pytest.fixture
def home() -> Iterator[tuple[int, list[str]]]:
    """A server that a spy would report to: its port, and what it was asked."""
    asked: list[str] = []

    class Home(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Home) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def test_a_signature_of_the_user_s_own_cannot_send_home_what_it_sees(
    hostile: Worker, home: tuple[int, list[str]]
) -> None:
    port, asked = home
    (hostile.cwd / "signatures" / "spy.py").write_text(
        f"from urllib.request import urlopen\nurlopen('http://127.0.0.1:{port}/')\n"
    )
    said = hostile.report("pass")["debug"]["errors"]
    assert asked == []
    assert any("spy.py" in line and "Operation not permitted" in line for line in said), said


def test_signatures_and_rules_that_lie_elsewhere_are_read_by_their_links(
    hostile: Worker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "rule.yar").write_text('rule Greets { strings: $a = "hello" condition: $a }')
    (elsewhere / "broken.py").write_text("raise RuntimeError('it was read')")
    (hostile.cwd / "conf" / "yara" / "binaries").mkdir(parents=True)
    (hostile.cwd / "conf" / "yara" / "binaries" / "shared").symlink_to(elsewhere)
    (hostile.cwd / "conf" / "yara" / "binaries" / "rule.yar").symlink_to(elsewhere / "rule.yar")
    (hostile.cwd / "signatures" / "broken.py").symlink_to(elsewhere / "broken.py")
    made = hostile.report("pass")
    assert [match["name"] for match in made["target"]["file"]["yara"]] == ["Greets"]
    assert any("it was read" in line for line in made["debug"]["errors"])


OLDER = """
import sys
from pathlib import Path
from cuckoo_api.confinement import landlock
from cuckoo_api.confinement.kernel import prctl

readable, writable, version = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
landlock.version = lambda: version
prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
landlock.restrict([str(readable), "/nowhere"], [str(writable)])
(writable / "new").write_text((readable / "file").read_text())
(writable / "new").rename(writable / "file")
(writable / "file").unlink()
for refused in (lambda: (readable / "new").touch(), lambda: (readable / "../x").read_text()):
    try:
        refused()
    except PermissionError:
        continue
    sys.exit("it was not refused")
"""


@pytest.mark.parametrize("version", range(1, landlock.version() + 1))
def test_landlock_as_older_kernels_have_it(tmp_path: Path, version: int) -> None:
    (tmp_path / "x").write_text("out of reach")
    for name in ("readable", "writable"):
        (tmp_path / name).mkdir()
    (tmp_path / "readable" / "file").write_text("")
    arguments = (tmp_path / "readable", tmp_path / "writable", str(version))
    subprocess.run([sys.executable, "-c", OLDER, *arguments], check=True)


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "outcome"),
    [
        ("x86_64", 41, 0, seccomp.REFUSE),
        ("aarch64", 198, 0, seccomp.REFUSE),
        ("aarch64", 41, 0, seccomp.KILL),  # pivot_root there
        ("aarch64", 117, 0, seccomp.KILL),
        ("aarch64", 63, 0, seccomp.ALLOW),
        ("aarch64", 435, 0, seccomp.UNKNOWN),
        ("aarch64", 220, 0x3D0F00, seccomp.ALLOW),  # what a C library starts a thread with
        ("aarch64", 220, 17, seccomp.REFUSE),
        ("aarch64", 129, 4242, seccomp.ALLOW),
        ("aarch64", 129, 1, seccomp.REFUSE),
        ("aarch64", 463, 0, seccomp.UNKNOWN),
        ("x86_64", 0x40000029, 0, seccomp.UNKNOWN),  # x32's socket
    ],
)
def test_the_filter_of_each_architecture(
    machine: str, number: int, arguments: int, outcome: int
) -> None:
    architecture = seccomp.ARCHITECTURES[machine][0]
    assert decide(seccomp.build(machine, 4242), architecture, number, arguments) == outcome


def test_calls_by_another_architecture_s_numbers_end_the_process() -> None:
    assert decide(seccomp.build("x86_64", 1), 0x40000003, 0, 0) == seccomp.KILL  # as i386


def decide(program: bytes, architecture: int, number: int, argument: int) -> int:
    """What the kernel would make of the filter, as far as it uses the language."""
    data = {0: number, 4: architecture, 16: argument}
    steps = list(struct.iter_unpack("=HBBI", program))
    at = loaded = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            loaded = data[value]
            continue
        holds = {0x15: loaded == value, 0x25: loaded > value, 0x45: bool(loaded & value)}[code]
        at += if_true if holds else if_false
