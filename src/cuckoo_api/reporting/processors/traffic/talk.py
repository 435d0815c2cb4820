"""Packets gathered into conversations, under a fixed bound of memory."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

import dpkt

from cuckoo_api.reporting.bounds import Notes, clip, printable
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors.traffic.bodies import Bodies
from cuckoo_api.reporting.processors.traffic.dns import DnsDialogue, Questions
from cuckoo_api.reporting.processors.traffic.http import Exchange, HttpDialogue
from cuckoo_api.reporting.processors.traffic.packets import IP, Segment
from cuckoo_api.reporting.processors.traffic.streams import (
    HTTP,
    TLS,
    Budget,
    Connection,
    Dialogue,
)
from cuckoo_api.reporting.processors.traffic.tls import TlsDialogue

MAX_FLOWS = 5_000
"""Listed, for TCP and for UDP each."""
MAX_OPEN = 2_000
"""TCP connections that are followed at the same time."""
MAX_HTTP = 2_000
MAX_TLS = 2_000
MAX_ICMP = 1_000
MAX_HOSTS = 5_000
MAX_WAITING = 32 << 20
AGENT_PORT = 8000

Ends = tuple[str, int, str, int]


@dataclass(slots=True)
class Flow:
    """Packets between the same two ends; ``src`` is who spoke first."""

    src: str
    sport: int
    dst: str
    dport: int
    time: float
    packets: int = 0
    size: int = 0

    def entry(self) -> dict[str, Any]:
        """As the report lists it; ``time`` in seconds since the first packet."""
        return {
            "src": self.src,
            "sport": self.sport,
            "dst": self.dst,
            "dport": self.dport,
            "time": round(self.time, 6),
            "packets": self.packets,
            "bytes": self.size,
        }


class Talk:
    """Takes IP packets in their order; gives the section."""

    def __init__(self, job: Job, notes: Notes) -> None:
        self.bodies = Bodies(notes)
        """What was sent over HTTP."""
        self._job = job
        self._notes = notes
        self._began: float | None = None
        self._now = 0.0
        self._budget = Budget(MAX_WAITING)
        self._questions = Questions(notes)
        self._tcp: dict[Ends, Flow] = {}
        self._udp: dict[Ends, Flow] = {}
        self._icmp: dict[tuple[str, str, int, int], dict[str, Any]] = {}
        self._hosts: dict[str, None] = {}
        self._open: dict[Ends, Connection] = {}
        self._http: list[tuple[Flow, Exchange]] = []
        self._tls: list[tuple[Flow, dict[str, Any]]] = []

    def feed(self, seen: float, packet: Segment | IP) -> None:
        """Take a packet that was seen at a Unix time."""
        if self._began is None:
            self._began = seen
        offset = self._now = seen - self._began
        family = socket.AF_INET if len(packet.src) == 4 else socket.AF_INET6
        src, dst = socket.inet_ntop(family, packet.src), socket.inet_ntop(family, packet.dst)
        if isinstance(packet, Segment):
            self._take_tcp((src, packet.sport, dst, packet.dport), offset, packet)
            return
        inner = packet.data
        if isinstance(inner, dpkt.udp.UDP):
            self._take_udp((src, inner.sport, dst, inner.dport), offset, inner)
        elif isinstance(inner, dpkt.icmp.ICMP | dpkt.icmp6.ICMP6):
            self._take_icmp(src, dst, inner)

    def section(self) -> dict[str, Any]:
        """The report's ``network``, without the capture's hash."""
        return {
            "hosts": list(self._hosts),
            "domains": self._questions.domains(),
            "dns": self._questions.dns(),
            "http": [
                {"src": flow.src, "sport": flow.sport, "dst": flow.dst, "dport": flow.dport}
                | exchange.entry(flow.dport, self.bodies)
                for flow, exchange in self._http
            ],
            "tcp": [flow.entry() for flow in self._tcp.values()],
            "udp": [flow.entry() for flow in self._udp.values()],
            "icmp": list(self._icmp.values()),
            "tls": [
                {"src": flow.src, "sport": flow.sport, "dst": flow.dst, "dport": flow.dport} | hello
                for flow, hello in self._tls
            ],
        }

    def _flow(self, flows: dict[Ends, Flow], ends: Ends, offset: float) -> Flow | None:
        """The flow of a packet, whichever end it came from; None beyond the limit."""
        flow = flows.get(ends) or flows.get((ends[2], ends[3], ends[0], ends[1]))
        if flow is None:
            if len(flows) >= MAX_FLOWS:
                self._notes.cut("network, TCP or UDP conversations", MAX_FLOWS)
                return None
            flow = flows[ends] = Flow(*ends, offset)
            self._host(flow.src, flow.dst)
        return flow

    def _take_tcp(self, ends: Ends, offset: float, segment: Segment) -> None:
        syn, ack = segment.flags & dpkt.tcp.TH_SYN, segment.flags & dpkt.tcp.TH_ACK
        back = (ends[2], ends[3], ends[0], ends[1])
        if self._ours(ends) or self._ours(back):
            return
        if syn and ack and ends not in self._tcp and back not in self._tcp:
            # the capture began in the middle: the one who answers did not begin
            self._flow(self._tcp, back, offset)
        flow = self._flow(self._tcp, ends, offset)
        if flow is None:
            return
        flow.packets += 1
        flow.size += len(segment.data)
        key = (flow.src, flow.sport, flow.dst, flow.dport)
        connection = self._open.get(key)
        if syn and not ack and connection is not None and ends == key:
            connection.close()  # the same ports again
            connection = None
        if connection is None:
            connection = self._connect(flow, key)
        direction = connection.client if ends == key else connection.server
        if syn:
            direction.syn(segment.sequence)
        direction.segment((segment.sequence + bool(syn)) % (1 << 32), segment.data)
        if segment.flags & dpkt.tcp.TH_RST:
            connection.close()

    def _connect(self, flow: Flow, key: Ends) -> Connection:
        if len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open))
            self._open.pop(oldest).close()
        connection = Connection(lambda start: self._speaks(flow, start), self._budget)
        self._open[key] = connection
        return connection

    def _speaks(self, flow: Flow, start: bytes) -> Dialogue | None:
        if flow.dport == 53:
            return DnsDialogue(self._questions)
        if HTTP.match(start):
            return HttpDialogue(
                lambda exchange: self._exchange(flow, exchange), lambda: self._now, self.bodies
            )
        if TLS.match(start):
            return TlsDialogue(lambda hello: self._hello(flow, hello))
        return None

    def _exchange(self, flow: Flow, exchange: Exchange) -> None:
        if len(self._http) < MAX_HTTP:
            self._http.append((flow, exchange))
        else:
            self._notes.cut("network.http", MAX_HTTP)

    def _hello(self, flow: Flow, hello: dict[str, Any]) -> None:
        if len(self._tls) < MAX_TLS:
            self._tls.append((flow, hello))
        else:
            self._notes.cut("network.tls", MAX_TLS)

    def _take_udp(self, ends: Ends, offset: float, datagram: Any) -> None:
        flow = self._flow(self._udp, ends, offset)
        data = bytes(datagram.data)
        if flow is not None:
            flow.packets += 1
            flow.size += len(data)
        if 53 in (ends[1], ends[3]):
            self._questions.message(data)

    def _take_icmp(self, src: str, dst: str, message: Any) -> None:
        key = (src, dst, int(message.type), int(message.code))
        if key in self._icmp:
            self._icmp[key]["packets"] += 1
            return
        if len(self._icmp) >= MAX_ICMP:
            self._notes.cut("network.icmp", MAX_ICMP)
            return
        self._host(src, dst)
        data = clip(printable(bytes(message.data)[:64]), 256)
        self._icmp[key] = {
            "src": src, "dst": dst, "type": key[2], "code": key[3], "data": data, "packets": 1,
        }  # fmt: skip

    def _host(self, src: str, dst: str) -> None:
        """Note the end that is not the guest, when it is one machine."""
        other = dst if dst != self._job.guest_ip else src
        address = ipaddress.ip_address(other)
        if address.is_multicast or address.is_unspecified or other.endswith(".255"):
            return
        if len(self._hosts) < MAX_HOSTS:
            self._hosts[other] = None

    def _ours(self, ends: Ends) -> bool:
        """Whether this is the sandbox itself: to its agent, or to its result server."""
        _, _, dst, dport = ends
        job = self._job
        return (dport == job.resultserver_port and dst == job.resultserver_ip) or (
            dport == AGENT_PORT and bool(dst) and dst == job.guest_ip
        )
