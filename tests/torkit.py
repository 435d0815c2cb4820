"""A Tor network of the lab's own, of the real ``tor``: an authority and relays at the provider.

Its clocks run so fast that it is of use within some fifteen seconds.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from netkit import GATEWAY, PROVIDER, WEB, Lab, until

RELAYS = ("authority", "first", "second", "third")
"""A way begins at the authority, which alone has the directory, and leaves by one of the others."""
PORTS = 7000
"""The authority's page, and from the next on one for each relay."""
ALL = """\
TestingTorNetwork 1
EnforceDistinctSubnets 0
DataDirectory {folder}
ShutdownWaitLength 0
DirAuthority authority orport={orport} no-v2 v3ident={identity} {address}:{ports} {fingerprint}
"""
RELAY = """\
Nickname {name}
SocksPort 0
Address {address}
ORPort {address}:{port}
AssumeReachable 1
ServerDNSDetectHijacking 0
ServerDNSTestAddresses
ServerDNSResolvConfFile {folder}/resolv.conf
"""
EXIT = """\
DirCache 0
ExitRelay 1
ExitPolicy accept *:*
"""
"""It has no directory: it would be asked for what it does not know yet."""
AUTHORITY = """\
ExitPolicy reject *:*
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ContactInfo authority@example.org
DirPort {address}:{ports}
TestingV3AuthInitialVotingInterval 5
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
V3AuthVotingInterval 10
V3AuthVoteDelay 2
V3AuthDistDelay 2
TestingAuthDirTimeToLearnReachability 0
TestingDirAuthVoteGuard *
"""
CLIENT = """\
SocksPort 0
TransPort {gateway}:9040
DNSPort {gateway}:5353
"""
NAMES = f"""
import socket
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 53))
print("ready", flush=True)
record = bytes.fromhex("c00c00010001000000ff0004") + socket.inet_aton("{WEB}")
while True:
    asked, who = udp.recvfrom(512)
    end = asked.index(0, 12) + 5
    udp.sendto(asked[:2] + bytes.fromhex("81800001000100000000") + asked[12:end] + record, who)
"""
"""Tells the exits that every name is the web server's."""


class Tor:
    """The network, and the host's own ``tor``, to which guests are turned."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self._folder = lab, folder
        for name in (*RELAYS, "client"):
            (folder / name).mkdir(mode=0o700)
        self._known: dict[str, object] = {"address": PROVIDER, "ports": PORTS, "orport": PORTS + 1}
        self._known |= {"gateway": GATEWAY, **self._keys(folder / "authority")}

    def start(self) -> None:
        """Start all, and wait until the host's has made a way through it."""
        self._lab.python("provider", NAMES)
        for number, name in enumerate(RELAYS):
            more = AUTHORITY if name == "authority" else EXIT
            (self._folder / name / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            self._start("provider", name, RELAY + more, PORTS + 1 + number)
        # a client that came earlier would ask again later and later
        until(self._knows_all, "what the authority tells of the relays", 30)
        self._start("host", "client", CLIENT)
        log = self._folder / "client.log"
        until(lambda: "Bootstrapped 100%" in log.read_text(), "a way through Tor", 20)

    def _knows_all(self) -> bool:
        told = self._folder / "authority" / "cached-microdesc-consensus"
        return told.exists() and told.read_text().count("\nr ") == len(RELAYS)

    def _start(self, namespace: str, name: str, conf: str, port: int = 0) -> None:
        folder = self._folder / name
        said = (ALL + conf).format(folder=folder, name=name, port=port, **self._known)
        (folder / "torrc").write_text(said)
        log = self._folder / f"{name}.log"
        self._lab.spawn(namespace, "tor", "-f", str(folder / "torrc"), log=log)

    def _keys(self, folder: Path) -> dict[str, str]:
        """The authority's keys; who it is by each of them."""
        (folder / "keys").mkdir(mode=0o700)
        subprocess.run(
            [
                *("tor-gencert", "--create-identity-key", "--passphrase-fd", "0"),
                *("-a", f"{PROVIDER}:{PORTS}", "-i", "authority_identity_key"),
                *("-s", "authority_signing_key", "-c", "authority_certificate"),
            ],
            cwd=folder / "keys",
            input=b"none\n",
            check=True,
            capture_output=True,
        )
        certificate = (folder / "keys" / "authority_certificate").read_text()
        identity = re.search(r"^fingerprint ([0-9A-F]{40})$", certificate, re.MULTILINE)
        assert identity is not None
        (folder / "none").touch()
        told = subprocess.run(
            [
                *("tor", "--quiet", "--list-fingerprint", "-f", folder / "none"),
                *("--DataDirectory", folder, "--ORPort", "1", "--Nickname", "authority"),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        fingerprint = told.stdout.removeprefix("authority ").replace(" ", "").strip()
        return {"identity": identity[1], "fingerprint": fingerprint}
