"""Whole analyses by their tasks' routes: real guests, a real tunnel, the rooter, and the wires.

The server and the rooter run on the lab's host: see ``netkit``. What the plain uplink sees of a
guest that has no business there must be nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dpkt
import pytest
from serverkit import DONE, Namespace, Site, configure, new_cwd

from netkit import UPLINK_ADDRESS, WEB, Lab, internet, run_rooter, until
from tunnelkit import OpenVpn, certificates

BRIDGE = "qemubr"
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
interfaces = {BRIDGE}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = internet(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tunnel(lab: Lab, tmp_path: Path) -> OpenVpn:
    certificates(tmp_path / "openvpn")
    made = OpenVpn(lab, tmp_path / "openvpn")
    made.start_server()
    made.start_client()
    return made


class Rooter:
    """``cuckoo rooter`` on the host."""

    def __init__(self, lab: Lab, cwd: Path) -> None:
        self._lab, self._cwd = lab, cwd

    def start(self) -> None:
        run_rooter(self._lab, self._cwd, self._cwd / "log" / "rooter.log")

    def kill(self) -> None:
        for pid in self._lab.pids("host", "\0rooter\0"):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def routed(
    lab: Lab,
    tunnel: OpenVpn,
    prepared: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Site, Rooter]]:
    """A server with two machines on a bridge, and its rooter; both run."""
    cwd = new_cwd(tmp_path / "cwd", prepared, **{"cuckoo.rooter": str(tmp_path / "rooter.sock")})
    configure(cwd, "qemu", {"qemu.network": "bridge"})
    # a restart of the rooter costs no task where it may wait
    on_down = "wait" if "the rooter" in request.node.name else "fail"
    conf = ROUTING.format(management=tunnel.management, on_down=on_down)
    (cwd / "conf" / "routing.conf").write_text(conf)
    rooter = Rooter(lab, cwd)
    rooter.start()
    site = Site(cwd, Namespace(lab.namespace("host")))
    await site.start()
    yield site, rooter
    await site.stop()


def sent_to_web(site: Site, task_id: int) -> int:
    """The packets to the web server in the task's capture."""
    with (site.folder(task_id) / "dump.pcap").open("rb") as file:
        packets = [dpkt.ethernet.Ethernet(data).data for _, data in dpkt.pcap.Reader(file)]
    web = bytes(int(part) for part in WEB.split("."))
    return sum(isinstance(p, dpkt.ip.IP) and p.dst == web for p in packets)


async def test_a_sample_is_seen_from_its_tunnels_end_and_by_no_other_way(
    lab: Lab, routed: tuple[Site, Rooter]
) -> None:
    site, _ = routed
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
        if event != "the tunnel":
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


def test_the_command_line_proves_a_tunnel(lab: Lab, tunnel: OpenVpn, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    (cwd / "conf").mkdir(parents=True)
    (cwd / "log").mkdir()
    (cwd / "conf" / "cuckoo.conf").write_text(f"[cuckoo]\nrooter = {tmp_path / 'rooter.sock'}\n")
    (cwd / "conf" / "routing.conf").write_text(
        ROUTING.format(management=tunnel.management, on_down="fail")
    )
    Rooter(lab, cwd).start()
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
