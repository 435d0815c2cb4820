"""From a bare Debian to a running service by one page, with systemd as its first process."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from bootkit import Host, wheelhouse
from serverkit import Namespace

from cuckoo_api.settings.init import with_value
from pagekit import ROOT, Reader, Step, steps
from probekit import PATIENCE, Probe

PAGE = "docs/deployment.md"
CWD = Path("var/lib/cuckoo")
CUCKOO = "/usr/local/bin/cuckoo"
SHOWN = ("active\nactive\nactive\n", '"command_line":"uname -a"', "is as it was on")
SECRETS = "docs/configuration.md"
TOKEN = "a-secret-from-outside"
API = "http://127.0.0.1:8090"
ASK = ("curl", "--silent", "--fail", "--header", f"Authorization: Bearer {TOKEN}")
CAPTURE = "/usr/bin/tcpdump --immediate-mode -i lo -c 1 -w /dev/null"
WATCH = "etc/systemd/system/cuckoo-engine.service.d/watch.conf"
ONE_PROCESS = ("api --drain", "Service=cuckoo-engine.service", "systemctl mask cuckoo-api")
"""What the last steps are about."""


class Operator(Reader):
    """Root on a host that has just been installed."""

    def __init__(self, folder: Path, host: Host, prepared: Path) -> None:
        super().__init__(folder, inside=host.inside)
        self._host = host
        self._prepared = prepared
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "APT_CONFIG": "/root/apt.conf",
        }
        (host.root / "root/apt.conf").write_text('APT::Get::Simulate "true";\n')
        self._prologue = "set -eu; cd /root\n"

    def do(self, page: str, step: Step) -> None:
        if "guest build" in step.text:
            self._bring_guest()
        if step.language == "ini" and not (path := self._path(step.title)).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
        else:
            super().do(page, step)

    def _bring_guest(self) -> None:
        """Debian's packages are out of reach; the tutorial's test has it built and booted."""
        for part in ("guests", "machinery/qemu/cuckoo1/snapshots"):
            shutil.copytree(self._prepared / part, self._host.root / CWD / part)
        self._host.run("chown", "--recursive", "cuckoo:", f"/{CWD}")

    def _path(self, title: str) -> Path:
        return self._host.root / title.removeprefix("/")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if exc is not None:
            print(journal(self._host, "cuckoo-*"))
        super().__exit__(kind, exc, trace)


def test_the_page_leads_to_a_service_that_is_hardened_and_watched(
    namespace: Namespace, prepared: Path, tmp_path: Path
) -> None:
    wheels = wheelhouse(tmp_path / "wheels")
    with Host(tmp_path / "host", namespace, wheels) as host:
        version = host.run("python3", "-c", "import sys; print(*sys.version_info[:2])").split()
        assert tuple(map(int, version)) == sys.version_info[:2], "the wheels are for this Python"
        with Operator(tmp_path / "operator", host, prepared) as operator:
            todo = steps(PAGE)
            for step in todo[: -len(ONE_PROCESS)]:
                operator.do(PAGE, step)
            for shown in SHOWN:
                assert shown in operator.said, operator.said
            has_no_rights(host, "cuckoo-api")
            has_no_rights(host, "cuckoo-engine")
            the_rooter_alone_may_change_the_network(host)
            a_restart_fails_no_request(host)
            an_analysis_outlives_restarts(host)
            prepare(host)
            what_hangs_is_started_anew(host)
            a_killed_engine_loses_no_task(host)
            a_secret_comes_from_outside(host)
            a_faulty_configuration_is_said_by_a_reload(host)
            for step, word in zip(todo[-len(ONE_PROCESS) :], ONE_PROCESS, strict=True):
                assert word in step.text
                operator.do(PAGE, step)
            assert '{"status":"ok"}' in operator.said
            assert host.run("systemctl", "is-active", "cuckoo-api", check=False) == "inactive\n"
        assert host.run("systemctl", "--failed", "--no-legend") == ""
    assert namespace.pids() == []


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def journal(host: Host, unit: str) -> str:
    return host.run("journalctl", "--output=cat", f"--unit={unit}")


def pid_of(host: Host, unit: str) -> str:
    return host.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()


def status(host: Host, unit: str) -> dict[str, str]:
    """Its main process, as the kernel has it."""
    text = (host.root / "proc" / pid_of(host, unit) / "status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def has_no_rights(host: Host, unit: str) -> None:
    found = status(host, unit)
    names = ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")
    assert [found[name].strip() for name in names] == ["0" * 16] * 3 + ["1", "2"]
    assert found["Uid"].split()[0] != "0"


def the_rooter_alone_may_change_the_network(host: Host) -> None:
    """By a file that the server cannot write; the guests are on a bridge that it has made."""
    found, engine = status(host, "cuckoo-rooter"), status(host, "cuckoo-engine")
    assert {int(found[f"Cap{kind}"], 16) for kind in ("Eff", "Prm", "Bnd")} == {1 << 12}
    assert found["Uid"].split()[0] not in ("0", engine["Uid"].split()[0])
    assert "cuckoo_rooter" in host.run("nft", "list", "tables")
    assert '"command":"Plug"' in journal(host, "cuckoo-rooter")
    assert "conf/routing.conf" not in host.run(CUCKOO, "doctor", check=False)
    change = ("runuser", "-u", "cuckoo", "--", "sh", "-c", "echo >> /etc/cuckoo/routing.conf")
    host.run(*change, check=False)
    assert (host.root / "etc/cuckoo/routing.conf").read_text().endswith("/24\n")


def a_restart_fails_no_request(host: Host) -> None:
    address = str(host.root / "run/cuckoo/api.sock")
    probes = [Probe(socket.AF_UNIX, address, keep_alive=keep) for keep in (True, False)]
    before = pid_of(host, "cuckoo-api")
    with probes[0].at_work(8), probes[1].at_work(4):
        for probe in probes:
            probe.wait_for(20)
        host.run("systemctl", "restart", "cuckoo-api")
        for probe in probes:
            probe.wait_for(20)
    assert pid_of(host, "cuckoo-api") != before
    assert [set(probe.answers) for probe in probes] == [{"200"}, {"200"}]


def an_analysis_outlives_restarts(host: Host) -> None:
    """The API's, which it does not notice, and the engine's, which waits for it."""
    (host.root / "tmp/slow.sh").write_text("#!/bin/sh\nsleep 8\n")
    host.run(CUCKOO, "submit", "/tmp/slow.sh")
    until(lambda: '"analysis.started","task_id":2' in journal(host, "cuckoo-engine"))
    host.run("systemctl", "restart", "cuckoo-api")
    host.run("systemctl", "restart", "cuckoo-engine")
    task = json.loads(host.run(CUCKOO, "view", "2", "--json"))
    assert (task["status"], task["errors"]) == ("reported", [])
    assert journal(host, "cuckoo-engine").count('"analysis.begins","task_id":2') == 1


def prepare(host: Host) -> None:
    """What the pages say of secrets and of tcpdump, for when the services start the next time."""
    [secret] = re.findall(r'title="systemctl edit cuckoo-api"\n(.*?)```', read(SECRETS), re.DOTALL)
    [capture] = re.findall(r"```ini\n(\[Service\]\nAmbient.*?)```", read(PAGE), re.DOTALL)
    [(name, path)] = re.findall(r"^LoadCredential=([\w-]+):(\S+)$", secret, re.MULTILINE)
    kept = host.root / path.removeprefix("/")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(TOKEN)
    kept.chmod(0o600)
    conf = host.root / CWD / "conf/cuckoo.conf"
    conf.write_text(with_value(conf.read_text(), "cuckoo", "api_token", f"credential:{name}"))
    change(host, "cuckoo-api", secret, "WatchdogSec=2s\n")
    change(host, "cuckoo-engine", secret, capture)
    (host.root / WATCH).write_text(f"[Service]\nExecStartPost={CAPTURE}\n")
    host.run("systemctl", "daemon-reload")


def change(host: Host, unit: str, *lines: str) -> None:
    """``systemctl edit``."""
    path = host.root / f"etc/systemd/system/{unit}.service.d/override.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))


def what_hangs_is_started_anew(host: Host) -> None:
    host.run("systemctl", "restart", "cuckoo-api")
    before = pid_of(host, "cuckoo-api")
    host.run("kill", "-STOP", before)
    until(lambda: pid_of(host, "cuckoo-api") not in ("0", before))
    until(lambda: host.run("systemctl", "is-active", "cuckoo-api", check=False) == "active\n")
    assert "Watchdog timeout" in journal(host, "cuckoo-api")


def a_killed_engine_loses_no_task(host: Host) -> None:
    """Its machine goes with it, and its task begins anew. tcpdump may capture then, see above."""
    (host.root / "tmp/slow.sh").write_text("#!/bin/sh\nsleep 2\n")
    host.run(*ASK, "--form", "file=@/tmp/slow.sh", f"{API}/tasks/create/file")
    until(lambda: '"analysis.started","task_id":3' in journal(host, "cuckoo-engine"))
    before = pid_of(host, "cuckoo-engine")
    host.run("kill", "-KILL", before)
    until(lambda: is_ready(host))
    assert pid_of(host, "cuckoo-engine") not in ("0", before)
    assert int(status(host, "cuckoo-engine")["CapEff"], 16) == 1 << 13  # CAP_NET_RAW
    assert "1 packet captured" in journal(host, "cuckoo-engine")
    (host.root / WATCH).unlink()
    host.run("systemctl", "daemon-reload")
    until(lambda: '"reported"' in host.run(*ASK, f"{API}/tasks/view/3"))
    assert journal(host, "cuckoo-engine").count('"analysis.begins","task_id":3') == 2


def is_ready(host: Host) -> bool:
    """Whether the engine says so. To be asked is also what tcpdump waits for."""
    host.run("curl", "--silent", "http://127.0.0.1:8091/readyz", check=False)
    return host.run("systemctl", "is-active", "cuckoo-engine", check=False) == "active\n"


def a_secret_comes_from_outside(host: Host) -> None:
    assert host.run("grep", "--recursive", TOKEN, f"/{CWD}/conf", check=False) == ""
    assert TOKEN not in journal(host, "cuckoo-*")
    assert '"hostname"' in host.run(*ASK, f"{API}/cuckoo/status")


def a_faulty_configuration_is_said_by_a_reload(host: Host) -> None:
    path = host.root / CWD / "conf/cuckoo.conf"
    good = path.read_text()
    path.write_text(good.replace("freespace = 1024", "freespace = plenty"))
    assert host.run("systemctl", "reload", "cuckoo-engine", check=False) == ""
    assert "[cuckoo] freespace: 'plenty'" in journal(host, "cuckoo-engine")
    assert host.run("systemctl", "is-active", "cuckoo-engine") == "active\n"
    path.write_text(good)
    host.run("systemctl", "reload", "cuckoo-engine")


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)
