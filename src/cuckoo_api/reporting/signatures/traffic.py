"""Whom a sample talks to, and in which way."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature, mark

SCANNED_PORTS = 20
SCANNED_HOSTS = 30
NAMELESS = 10


class PortScan(Signature):
    name = "port_scan"
    description = "Tries many ports of a host, or one port of many hosts"
    severity = 3
    ttp = ("T1046",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        ports: dict[str, set[str]] = defaultdict(set)
        hosts: dict[str, set[str]] = defaultdict(set)
        for seen in facts.seen("connects_host"):
            host, _, port = seen.path.rpartition(":")
            ports[host].add(port)
            hosts[port].add(host)
        for flow in facts.network.tcp:
            ports[str(flow.get("dst"))].add(str(flow.get("dport")))
            hosts[str(flow.get("dport"))].add(str(flow.get("dst")))
        for host, tried in ports.items():
            if len(tried) >= SCANNED_PORTS:
                yield mark("scan", f"{len(tried)} ports of {host}")
        for port, asked in hosts.items():
            if len(asked) >= SCANNED_HOSTS:
                yield mark("scan", f"port {port} of {len(asked)} hosts")


class CryptoMiner(Signature):
    name = "crypto_miner"
    description = "Mines a cryptocurrency"
    severity = 3
    ttp = ("T1496.001",)

    _command = re.compile(
        r"stratum\+(?:tcp|ssl|tls)://|(?:^|/)(?:xmrig|xmr-stak|minerd|cpuminer|ccminer|kinsing)\b"
        r"|--donate-level|--(?:coin|algo)[= ](?:monero|rx/|cn/|randomx|cryptonight)"
    )
    _pool = re.compile(
        r"(?:^|\.)(?:minexmr|supportxmr|nanopool|moneroocean|hashvault|minergate|2miners|f2pool"
        r"|nicehash|c3pool|herominers|unmineable|dwarfpool|xmrpool|monerohash)\.\w+$"
    )

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("command_line"):
            if self._command.search(seen.path):
                yield mark("cmdline", seen.path, seen)
        for name in facts.network.names:
            if self._pool.search(name):
                yield mark("domain", name)


class Tor(Signature):
    name = "tor"
    description = "Uses Tor, to hide whom it talks to"
    severity = 3
    ttp = ("T1090.003",)

    _name = re.compile(r"\.onion$|\.onion\.\w+$|(?:^|\.)(?:tor2web\.\w+|torproject\.org)$")
    _local = re.compile(r"^127\.[0-9.]+:(?:9050|9051|9150)$")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for name in facts.network.names:
            if self._name.search(name):
                yield mark("domain", name)
        for seen in facts.seen("connects_host"):
            if self._local.search(seen.path):
                yield mark("host", seen.path, seen)


class WebService(Signature):
    name = "web_service"
    description = "Talks to a public service that others hide their commands and data in"
    severity = 2
    ttp = ("T1102", "T1567")

    _name = re.compile(
        r"(?:^|\.)(?:pastebin\.com|paste\.ee|rentry\.co|hastebin\.com|ghostbin\.\w+|transfer\.sh"
        r"|temp\.sh|file\.io|anonfiles\.com|gofile\.io|0x0\.st|catbox\.moe|api\.telegram\.org"
        r"|discord(?:app)?\.com|ngrok(?:-free)?\.(?:io|app|dev)|trycloudflare\.com|webhook\.site"
        r"|gist\.githubusercontent\.com|raw\.githubusercontent\.com)$"
    )

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for name in facts.network.names:
            if self._name.search(name):
                yield mark("domain", name)


class HttpToAddress(Signature):
    name = "http_to_address"
    description = "Asks a web server by its address, and not by a name"
    severity = 2
    ttp = ("T1071.001",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for request in facts.network.http:
            uri = str(request.get("uri", ""))
            own = facts.category == "url" and uri == facts.target
            if not own and _is_address(str(request.get("host", ""))):
                yield mark("request", f"{request.get('method', '')} {uri}")


class Irc(Signature):
    name = "irc"
    description = "Talks to a port of IRC, over which many botnets are led"
    severity = 2
    ttp = ("T1071",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for flow in facts.network.tcp:
            if flow.get("dport") in (*range(6660, 6670), 6697):
                yield mark("host", f"{flow.get('dst')}:{flow['dport']}")


class SendsMail(Signature):
    name = "sends_mail"
    description = "Talks to a mail server, as spam and stealers do"
    severity = 2
    ttp = ("T1071.003",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for flow in facts.network.tcp:
            if flow.get("dport") in (25, 465, 587):
                yield mark("host", f"{flow.get('dst')}:{flow['dport']}")


class GeneratedNames(Signature):
    name = "generated_names"
    description = "Asks for many names that nobody has registered"
    severity = 2
    ttp = ("T1568.002",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        asked: dict[str, bool] = {}
        for query in facts.network.dns:
            name = str(query.get("request", ""))
            asked[name] = asked.get(name, False) or bool(query.get("answers"))
        nameless = [name for name, known in asked.items() if not known and "." in name]
        if len(nameless) >= NAMELESS:
            yield from (mark("domain", name) for name in nameless)


class OpensPort(Signature):
    name = "opens_port"
    description = "Waits for connections from outside"
    severity = 2
    ttp = ("T1571",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("listens_on"):
            host = seen.path.rpartition(":")[0].strip("[]")
            if not _is_loopback(host):
                yield mark("host", seen.path, seen)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.rpartition(":")[0] if host.count(":") == 1 else host.strip("[]"))
    except ValueError:
        return ":" not in host and bool(host) and host.replace(".", "").isdigit()
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
