"""Real tunnels between the lab's host and its provider."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from netkit import PROVIDER, Lab, until

OPENVPN_EXIT, WIREGUARD_EXIT = "203.0.113.1", "203.0.113.2"
"""From where the web sees what went by each."""
OPENVPN_PEER, WIREGUARD_PEER = "10.8.0.1", "10.9.0.1"
SERVER = """\
dev tun0
dev-type tun
proto udp
port 1194
server 10.8.0.0 255.255.255.0
topology subnet
ca ca.crt
cert server.crt
key server.key
dh none
keepalive 1 4
verb 3
"""
CLIENT = f"""\
client
dev tun0
dev-type tun
proto udp
remote {PROVIDER} 1194
nobind
persist-key
persist-tun
remote-cert-tls server
ca ca.crt
cert client.crt
key client.key
keepalive 1 4
connect-retry 1 2
route-nopull
pull-filter ignore redirect-gateway
pull-filter ignore ping
keepalive 1 6
verb 3
management management.sock unix
"""


def certificates(folder: Path) -> None:
    """A small authority, and what it has signed for both ends."""
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    ca = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(folder, "ca", *key, "-subj", "/CN=authority", *ca)
    for name in ("server", "client"):
        use = ["-addext", f"extendedKeyUsage={name}Auth", "-addext", "keyUsage=digitalSignature"]
        leaf = [*use, "-addext", "basicConstraints=critical,CA:FALSE"]
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key"]
        _openssl(folder, name, *key, "-subj", f"/CN={name}", *leaf, *signed)


def _openssl(folder: Path, name: str, *words: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-keyout", f"{name}.key", "-out", f"{name}.crt", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


class OpenVpn:
    """A tunnel by OpenVPN, from the lab's host to its provider."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self.folder = lab, folder
        self.management = folder / "management.sock"
        self.server: subprocess.Popen[bytes] | None = None
        self.client: subprocess.Popen[bytes] | None = None
        self.interface = "tun0"
        (folder / "server.conf").write_text(SERVER)
        (folder / "client.conf").write_text(CLIENT)

    def start_server(self) -> None:
        self.server = self._start("provider", "server")
        self._says("server", "Initialization Sequence Completed")
        masquerade(self._lab, "10.8.0.0/24")

    def start_client(self, *, connected: bool = True) -> None:
        self.client = self._start("host", "client")
        until(self.management.exists, "the management socket")
        if connected:
            self._says("client", "Initialization Sequence Completed")

    def kill(self, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
        """End, or stop, one end: the process itself, not the program that entered for it."""
        assert process is not None
        os.kill(process.pid, number)  # ip netns exec becomes what it runs
        if number in {signal.SIGKILL, signal.SIGTERM}:
            process.wait(10)

    def _start(self, namespace: str, name: str) -> subprocess.Popen[bytes]:
        words = ("openvpn", "--cd", str(self.folder), "--config", f"{name}.conf")
        return self._lab.spawn(namespace, *words, log=self.folder / f"{name}.log")

    def _says(self, name: str, what: str) -> None:
        log = self.folder / f"{name}.log"
        until(lambda: what in log.read_text(errors="replace"), f"{name}: {what}", 15)


class WireGuard:
    """A tunnel by wireguard-go, whose interfaces are known by name to the whole machine."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self.folder = lab, folder
        self.server: subprocess.Popen[bytes] | None = None
        self.client: subprocess.Popen[bytes] | None = None
        self.interface, self._far = f"wg{lab.tag}", f"ws{lab.tag}"
        self._keys = {}
        for name in ("server", "client", "office"):
            private = lab.run("host", "wg", "genkey")
            path = folder / f"wg-{name}.key"
            path.write_text(private)
            path.chmod(0o600)
            self._keys[name] = lab.run("host", "wg", "pubkey", stdin=private).strip()

    @property
    def peer(self) -> str:
        """The provider, by its key."""
        return self._keys["server"]

    def start_server(self) -> None:
        self.server = self._start("provider", self._far)
        self._set("provider", self._far, "server", "client", "10.9.0.2/32", "listen-port", "51820")
        self._up("provider", self._far, "10.9.0.1/24")
        masquerade(self._lab, "10.9.0.0/24", WIREGUARD_EXIT)

    def start_client(self, *, silent: bool = False) -> None:
        """``silent``: it sends nothing by itself, no handshake either."""
        self.client = self._start("host", self.interface)
        end = ["endpoint", f"{PROVIDER}:51820", "persistent-keepalive", "0" if silent else "1"]
        self._set("host", self.interface, "client", "server", "0.0.0.0/0", peer=end)
        self._up("host", self.interface, "10.9.0.2/24")
        if silent:
            return
        shown = ("wg", "show", self.interface, "latest-handshakes")
        until(lambda: self._lab.run("host", *shown).split()[1] != "0", "the handshake")

    def start_office(self) -> None:
        """A second peer of the host, for a network of its own, which sends each second."""
        office, port = f"wo{self._lab.tag}", ("listen-port", "51822")
        self._set("host", self.interface, "client", "office", "10.77.0.0/24", *port)
        self._start("provider", office)
        alive = ["endpoint", "10.99.0.2:51822", "persistent-keepalive", "1"]
        self._set("provider", office, "office", "client", "10.9.0.2/32", peer=alive)
        self._up("provider", office, "10.77.0.1/24")
        until(lambda: self.received("office") > 0, "the office")

    def received(self, name: str = "server") -> int:
        """Bytes that the host has from a peer."""
        told = self._lab.run("host", "wg", "show", self.interface, "transfer").split()
        return int(told[told.index(self._keys[name]) + 1])

    def kill(self, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
        assert process is not None
        os.kill(process.pid, number)
        if number == signal.SIGKILL:
            process.wait(10)

    def _start(self, namespace: str, interface: str) -> subprocess.Popen[bytes]:
        words = ("env", "WG_PROCESS_FOREGROUND=1", "wireguard-go", "-f", interface)
        started = self._lab.spawn(namespace, *words, log=self.folder / f"{interface}.log")
        until(Path(f"/run/wireguard/{interface}.sock").exists, interface)
        return started

    def _set(
        self, namespace: str, interface: str, own: str, other: str, allowed: str, *words: str,
        peer: list[str] | None = None,
    ) -> None:  # fmt: skip
        key = str(self.folder / f"wg-{own}.key")
        self._lab.run(
            namespace, "wg", "set", interface, "private-key", key, *words,
            "peer", self._keys[other], "allowed-ips", allowed, *(peer or []),
        )  # fmt: skip

    def _up(self, namespace: str, interface: str, address: str) -> None:
        self._lab.run(namespace, "ip", "address", "add", address, "dev", interface)
        self._lab.run(namespace, "ip", "link", "set", interface, "up")


def masquerade(lab: Lab, network: str, source: str = "") -> None:
    """Let the provider send what came by a tunnel as its own, from its first address or another."""
    act = "masquerade"
    if source:
        lab.run("provider", "ip", "address", "add", f"{source}/24", "dev", "out")
        act = f"snat to {source}"
    name = "from" + "".join(c if c.isalnum() else "_" for c in network)
    chain = (
        f"chain out {{ type nat hook postrouting priority srcnat; "
        f'ip saddr {network} oifname "out" {act}; '
    )
    lab.run("provider", "nft", "-f", "-", stdin=f"table ip {name} {{ {chain} }}\n}}\n")
