"""Whole analyses by their tasks' routes: real guests, a real tunnel, the rooter, and the wires.

The server and the rooter run on the lab's host: see ``netkit``. What the plain uplink sees of a
guest that has no business there must be nothing.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dpkt
import pytest
from accountkit import as_account, give_to
from serverkit import DONE, Namespace, Site, configure, new_cwd

from netkit import UPLINK_ADDRESS, WEB, Lab, internet, run_rooter, until
from tunnelkit import OpenVpn, certificates

BRIDGE, GATEWAY = "qemubr", "192.168.55.1"
ACCOUNT = "daemon"
"""An ordinary one."""
ACCOUNT_ID = str(pwd.getpwnam(ACCOUNT).pw_uid)
NET_ADMIN = "1000"
"""CAP_NET_ADMIN alone, as the kernel shows it."""
EXIT = "203.0.113.1"
ASK = f"""#!/bin/sh
for n in 1 2 3; do
    wget -q -T 2 -t 1 -O /tmp/seen http://{WEB}/ && break
done
cat /tmp/seen
"""
"""The web server answers with the address that it saw."""
BLAST = f"""#!/bin/sh
while :; do
    wget -q -T 1 -t 1 -O - http://{WEB}/marked
    echo marked | nc -u -w 1 {WEB} 53
done
"""
ROUTING = f"""
[routing]
internet = uplink
on_down = {{on_down}}
drop = yes
[vpn]
enabled = yes
vpns = vpn0
[vpn0]
description = Spain, Europe
country = es
interface = tun0
management = {{management}}
probe = http://{WEB}/
dns = {WEB}
[rooter]
user = {ACCOUNT}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = internet(tmp_path)
    yield made
    made.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose files every account may have; pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="ckt"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tunnel(lab: Lab, place: Path) -> OpenVpn:
    certificates(place / "openvpn")
    made = OpenVpn(lab, place / "openvpn")
    made.start_server()
    made.start_client()
    return made


class Rooter:
    """``cuckoo rooter`` on the host, by a file that is root's."""

    def __init__(self, lab: Lab, place: Path, conf: str) -> None:
        self._lab, self.socket, self._log = lab, place / "rooter.sock", place / "rooter.log"
        self._conf = place / "routing.conf"
        self._conf.write_text(conf)

    def start(self) -> None:
        words = ("--conf", str(self._conf), "--socket", str(self.socket))
        run_rooter(self._lab, self._conf.parent, self._log, *words)

    def kill(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        return self._lab.pids("host", "\0rooter\0")


@pytest.fixture
async def routed(
    lab: Lab,
    tunnel: OpenVpn,
    prepared: Path,
    place: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Site, Rooter]]:
    """A server with two machines on a bridge, and its rooter; both run.

    The server is an ordinary account's, and the bridge the rooter's; or, where the rooter's end is
    not to be the bridge's, it is root's, and makes its own.
    """
    is_root = "rooter" in request.node.name
    cwd = new_cwd(place / "cwd", prepared, **{"cuckoo.rooter": str(place / "rooter.sock")})
    configure(cwd, "qemu", {"qemu.network": "bridge"})
    # a restart of the rooter costs no task where it may wait
    on_down = "wait" if "the rooter" in request.node.name else "fail"
    networks = f"interfaces = {BRIDGE}" if is_root else f"bridges = {BRIDGE}:{GATEWAY}/24"
    conf = ROUTING.format(management=tunnel.management, on_down=on_down) + networks
    rooter = Rooter(lab, place, conf)
    rooter.start()
    site = Site(cwd, Namespace(lab.namespace("host")))
    if not is_root:
        site.prefix = as_account(ACCOUNT)
        give_to(ACCOUNT, cwd, prepared)
    (cwd / "conf" / "routing.conf").unlink()
    (cwd / "conf" / "routing.conf").symlink_to(place / "routing.conf")
    await site.start()
    yield site, rooter
    await site.stop()


def rights(pid: int, *also: str) -> tuple[str, set[str]]:
    """A process's account, and all capabilities that it has; ``also``: other sets of them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    kinds = ("CapEff", "CapPrm", "CapInh", "CapAmb", *also)
    return found["Uid"][0], {value for kind in kinds if (value := found[kind][0].lstrip("0"))}


def qemu_of(site: Site) -> list[tuple[str, set[str]]]:
    """What the server's QEMUs may; they have network namespaces of their own."""
    assert site.process is not None
    pid = site.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        rights(int(child))
        for child in children
        if "qemu-system" in Path(f"/proc/{child}/exe").readlink().name
    ]


def sent_to_web(site: Site, task_id: int) -> int:
    """The packets to the web server in the task's capture."""
    with (site.folder(task_id) / "dump.pcap").open("rb") as file:
        packets = [dpkt.ethernet.Ethernet(data).data for _, data in dpkt.pcap.Reader(file)]
    web = bytes(int(part) for part in WEB.split("."))
    return sum(isinstance(p, dpkt.ip.IP) and p.dst == web for p in packets)


async def test_a_sample_is_seen_from_its_tunnels_end_and_by_no_other_way(
    lab: Lab, routed: tuple[Site, Rooter]
) -> None:
    site, rooter = routed
    assert site.process is not None
    assert rights(site.process.pid, "CapBnd") == (ACCOUNT_ID, set())
    assert [rights(pid, "CapBnd") for pid in rooter.pids()] == [("0", {NET_ADMIN})]
    status = await site.get("/vpn/status")
    assert status["vpns"] == {"vpn0": True}, status
    [vpn] = status["details"]
    assert (vpn["status"], vpn["peer"], vpn["error"]) == ("up", "10.99.0.1:1194", None)
    with lab.capture("host", "uplink") as uplink:
        tunnelled = await site.analyse(ASK.encode(), "ask.sh", options="route=vpn0", timeout=60)
        assert not [line for line in uplink() if "IP " in line], "not one packet"
        plain, dropped = await asyncio.gather(
            site.analyse(ASK.encode(), "ask.sh", options="route=internet", timeout=60),
            site.analyse(ASK.encode(), "ask.sh", options="route=drop", timeout=60),
        )
    assert tunnelled["info"]["route"] == "vpn0"
    assert tunnelled["info"]["exit_address"] == EXIT, "by the probe"
    for report, address in ((tunnelled, EXIT), (plain, UPLINK_ADDRESS)):
        [request] = [r for r in report["network"]["http"] if r["host"] == WEB]
        body = site.folder(report["info"]["id"]) / request["resp"]["path"]
        assert body.read_text() == address, "the web server says whom it saw"
    assert dropped["network"]["http"] == []
    assert sent_to_web(site, dropped["info"]["id"]), "captured before it was dropped"
    task = await site.task(tunnelled["info"]["id"])
    assert (task["route"], task["guest"]["exit_address"]) == ("vpn0", EXIT)


@pytest.mark.parametrize("event", ["the tunnel", "the server", "the rooter"])
async def test_what_dies_in_the_middle_of_an_analysis_leaks_nothing(
    lab: Lab, tunnel: OpenVpn, routed: tuple[Site, Rooter], event: str
) -> None:
    site, rooter = routed
    lab.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    task_id = await site.submit(BLAST.encode(), "blast.sh", options="route=vpn0", timeout=20)
    with lab.capture("host", "uplink") as uplink:
        with lab.capture("host", "tun0", f"dst host {WEB}") as way:
            until(lambda: len([line for line in way() if "IP " in line]) > 10, "packets", 90)
        if event != "the rooter":
            assert qemu_of(site) == [(ACCOUNT_ID, set())]
        with lab.capture("host", BRIDGE, f"dst host {WEB}") as inside:
            match event:
                case "the tunnel":
                    tunnel.kill(tunnel.client, signal.SIGKILL)
                case "the rooter":
                    rooter.kill()
                case _:
                    await site.kill()
            if event == "the tunnel":  # else the guest is stopped, soon
                until(lambda: len([x for x in inside() if "IP " in x]) > 10, "it goes on", 30)
        if event == "the server":
            await site.start()  # it cleans up, and the task goes back to the queue
        if event == "the rooter":
            rooter.start()
        task = await site.until(task_id, *DONE)
        assert not [line for line in uplink() if "IP " in line]
    if event == "the tunnel":
        assert task["status"] == "reported"
        assert "The route vpn0 was down at the end" in task["errors"][-1]
        await site.get("/vpn/status")
        late = await site.submit(ASK.encode(), "ask.sh", options="route=vpn:es")
        failed = await site.until(late, *DONE)
        assert (failed["status"], failed["guest"]) == ("failed_analysis", {})
        assert "The route vpn:es cannot be had: vpn0: it is down" in failed["errors"][0]
    else:
        assert task["status"] == "reported", task["errors"]


async def test_without_a_rooter_the_status_says_so_and_guests_without_a_route_go_on(
    routed: tuple[Site, Rooter],
) -> None:
    site, rooter = routed
    rooter.kill()
    assert site.session is not None
    async with site.session.get("/vpn/status") as response:
        assert (response.status, (await response.json())["message"]) == (
            500, "Rooter not available",
        )  # fmt: skip
    routed_task = await site.submit(ASK.encode(), "ask.sh", options="route=drop", timeout=30)
    report = await site.analyse(b"#!/bin/sh\necho hello\n", "hello.sh", timeout=30)
    assert report["info"]["route"] == "none"
    failed = await site.until(routed_task, *DONE)
    assert failed["status"] == "failed_analysis"
    assert "The route drop cannot be given: Rooter not available" in failed["errors"][0]


def test_the_command_line_proves_a_tunnel(lab: Lab, tunnel: OpenVpn, place: Path) -> None:
    cwd = place / "cwd"
    (cwd / "conf").mkdir(parents=True)
    (cwd / "conf" / "cuckoo.conf").write_text(f"[cuckoo]\nrooter = {place / 'rooter.sock'}\n")
    conf = ROUTING.format(management=tunnel.management, on_down="fail")
    rooter = Rooter(lab, place, f"{conf}interfaces = {BRIDGE}\n")
    (cwd / "conf" / "routing.conf").symlink_to(place / "routing.conf")
    rooter.start()
    check = [
        *lab.inside("host"), sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd),
        "vpn", "check", "vpn0",
    ]  # fmt: skip
    proven = subprocess.run(check, capture_output=True, text=True)
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert f"the world sees {EXIT}" in proven.stdout
    tunnel.kill(tunnel.server, signal.SIGSTOP)
    assert subprocess.run(check, capture_output=True).returncode == 1
    tunnel.kill(tunnel.server, signal.SIGCONT)
