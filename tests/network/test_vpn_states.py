"""The states of real tunnels, by OpenVPN and WireGuard, in each situation that there is."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from netkit import WEB, Lab, Start, until
from tunnelkit import SERVER, WIREGUARD_EXIT, OpenVpn, WireGuard, certificates

WATCH = """
import asyncio, json, sys
from pathlib import Path
from cuckoo_api.network import tunnels, vpn
from cuckoo_api.network.rooter.client import RooterClient, RooterUnavailable
from cuckoo_api.server.logs import configure_logs
from cuckoo_api.settings import load_network

configure_logs()  # to standard error
vpn.PERIOD, vpn.SILENCE = 0.2, 2.5
tunnels.probing.TIMEOUT = 0.5

async def main():
    network = load_network(Path(sys.argv[1]))
    def tell(state, before):
        print(json.dumps([state.name, before, state.status, state.error, state.peer,
                          monitor.exit_address(state.name)]), flush=True)
    rooter = RooterClient(Path(sys.argv[2]))
    monitor = vpn.Monitor(network.vpns, rooter, tell)
    monitor.open()
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
CONF = """
[vpn]
enabled = yes
vpns = {name}
[{name}]
interface = {interface}
{more}
"""


class Watch:
    """What a monitor on the host says, change by change. Its periods are a tenth of the real."""

    def __init__(self, lab: Lab, cwd: Path, name: str, interface: str, more: str) -> None:
        path = cwd / "conf" / "routing.conf"
        path.write_text(path.read_text() + CONF.format(name=name, interface=interface, more=more))
        self._lab, self._cwd = lab, cwd
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        socket = str(self._cwd / "rooter.sock")
        self._process = self._lab.python("host", WATCH, str(self._cwd), socket)

    def rests(self) -> bool:
        """Whether nothing changes for longer than a peer may be silent."""
        assert self._process is not None
        return not select.select([self._process.stdout], [], [], 3)[0]

    def next(self) -> tuple[str, str, str]:
        """The next change: status, why, and the address that the probe saw."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        assert ready, "nothing has changed"
        _, _, status, error, _, address = json.loads(self._process.stdout.readline())
        return status, error or "", address


@pytest.fixture
def openvpn(lab: Lab, tmp_path: Path) -> OpenVpn:
    certificates(tmp_path / "openvpn")
    return OpenVpn(lab, tmp_path / "openvpn")


def test_openvpn_in_every_situation(lab: Lab, cwd: Path, openvpn: OpenVpn) -> None:
    (openvpn.folder / "server.conf").write_text(SERVER.replace("keepalive 1 4\n", ""))
    watch = Watch(lab, cwd, "vpn0", "tun0", f"management = {openvpn.management}")
    watch.open()
    assert watch.next() == ("down", "there is no interface tun0 that is up", "")
    openvpn.start_server()
    openvpn.start_client()
    assert watch.next()[0] == "up"
    assert watch.rests(), "its server never pings"

    openvpn.kill(openvpn.server, signal.SIGSTOP)
    status, why, _ = watch.next()
    assert (status, why[:21]) == ("stale", "nothing came from the"), "still CONNECTED, it says"
    openvpn.kill(openvpn.server, signal.SIGCONT)
    assert watch.next()[0] == "up"

    openvpn.kill(openvpn.server, signal.SIGKILL)
    assert watch.next()[0] == "stale"
    until(lambda: _state(lab, openvpn) != "CONNECTED", "ping-restart", 20)
    openvpn.start_server()
    assert watch.next()[0] == "up", "it is back"

    openvpn.kill(openvpn.client, signal.SIGKILL)
    assert watch.next()[0] == "down"


def _state(lab: Lab, openvpn: OpenVpn) -> str:
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(2);"
        "s.connect(sys.argv[1]); f = s.makefile('rwb'); f.readline(); f.write(b'state\\nquit\\n');"
        "f.flush(); print(f.readline().decode().split(',')[1])"
    )
    done = subprocess.run(
        [*lab.inside("host"), sys.executable, "-c", program, str(openvpn.management)],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or "CONNECTED"


def test_an_openvpn_that_never_gets_an_answer_is_no_tunnel(
    lab: Lab, cwd: Path, openvpn: OpenVpn
) -> None:
    watch = Watch(lab, cwd, "vpn0", "tun0", f"management = {openvpn.management}")
    openvpn.start_client(connected=False)
    watch.open()
    assert watch.next()[0] == "down", "its interface is made when it is connected"


def test_wireguard_with_a_probe(lab: Lab, cwd: Path, tmp_path: Path, start_rooter: Start) -> None:
    tunnel = WireGuard(lab, tmp_path)
    watch = Watch(lab, cwd, "wg", tunnel.interface, f"type = wireguard\nprobe = http://{WEB}/")
    start_rooter()
    watch.open()
    assert watch.next()[0] == "down"
    tunnel.start_server()
    tunnel.start_client()
    assert watch.next() == ("up", "", WIREGUARD_EXIT), "and the address that the web saw"
    tunnel.kill(tunnel.server, signal.SIGSTOP)
    status, why, _ = watch.next()
    assert (status, "did not answer" in why) == ("stale", True)
    tunnel.kill(tunnel.server, signal.SIGCONT)
    assert watch.next()[0] == "up"
    lab.run("host", "ip", "link", "set", tunnel.interface, "down")
    assert watch.next()[0] == "down"
    lab.run("host", "ip", "link", "set", tunnel.interface, "up")
    assert watch.next()[0] == "up"
    tunnel.kill(tunnel.client, signal.SIGKILL)
    assert watch.next()[0] == "down"


def test_a_wireguard_that_nobody_uses_is_up_until_its_peer_dies(
    lab: Lab, cwd: Path, tmp_path: Path, start_rooter: Start
) -> None:
    tunnel = WireGuard(lab, tmp_path)
    tunnel.start_server()
    watch = Watch(lab, cwd, "wg", tunnel.interface, "type = wireguard")
    start_rooter()
    with lab.capture("provider", "out") as beyond, lab.capture("host", "uplink") as uplink:
        tunnel.start_client(silent=True)
        watch.open()
        status, why, _ = watch.next()
        if status == "down":  # it was seen between its making and its address
            status, why, _ = watch.next()
        assert (status, why) == ("stale", "there never was a handshake")
        assert watch.next()[0] == "up", "what was sent to it made one"
        assert watch.rests()
        tunnel.start_office()
        assert not [line for line in beyond() + uplink() if "192.0.2.1" in line]
    tunnel.kill(tunnel.server, signal.SIGSTOP)
    heard = tunnel.received("office")
    status, why, _ = watch.next()
    assert (status, why[:21]) == ("stale", "nothing came from the")
    assert tunnel.received("office") > heard, "which is no way out"
    tunnel.kill(tunnel.server, signal.SIGCONT)
    assert watch.next()[0] == "up"


def test_wireguard_acknowledges_what_nobody_answers(lab: Lab, tmp_path: Path) -> None:
    tunnel = WireGuard(lab, tmp_path)
    tunnel.start_server()
    silence = "type filter hook output priority 0; ip protocol icmp drop;"
    lab.run("provider", "nft", "-f", "-", stdin=f"table ip no {{ chain out {{ {silence} }}\n}}\n")
    tunnel.start_client()
    lab.run("host", "wg", "set", tunnel.interface, "peer", tunnel.peer, "persistent-keepalive", "0")
    before = tunnel.received()
    nudge = "import sys; from cuckoo_api.network.probe import nudge; nudge(*sys.argv[1:])"
    lab.run("host", sys.executable, "-c", nudge, "192.0.2.1", tunnel.interface)
    until(lambda: tunnel.received() > before, "WireGuard's own acknowledgement", 12)


def test_an_interface_is_judged_by_an_echo(lab: Lab, cwd: Path, openvpn: OpenVpn) -> None:
    watch = Watch(lab, cwd, "plain", "wan", "probe = 10.99.0.1")
    watch.open()
    assert watch.next()[0] == "up"
    lab.run("provider", "ip", "link", "set", "wan", "down")
    assert watch.next()[0] == "stale"
