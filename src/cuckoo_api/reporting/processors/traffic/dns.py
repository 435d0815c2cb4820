"""DNS questions and their answers, over UDP and TCP."""

from __future__ import annotations

import socket
from typing import Any

import dpkt

from cuckoo_api.reporting.bounds import Notes, clip
from cuckoo_api.reporting.processors.traffic.packets import PARSE_ERRORS

MAX_QUESTIONS = 2_000
MAX_ANSWERS = 64
MAX_MESSAGE = 16 << 10
MAX_DATA = 512

_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT",
    28: "AAAA", 33: "SRV", 35: "NAPTR", 41: "OPT", 43: "DS", 46: "RRSIG", 48: "DNSKEY",
    64: "SVCB", 65: "HTTPS", 252: "AXFR", 255: "ANY",
}  # fmt: skip


class Questions:
    """Every name that was asked for, each once for a type."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._answers: dict[tuple[str, str], dict[tuple[str, str], None]] = {}

    def message(self, data: bytes) -> None:
        """Take a message; one that is broken is passed over."""
        try:
            message = dpkt.dns.DNS(data)
            names = [(_name(item.name), _kind(item.type)) for item in message.qd]
        except PARSE_ERRORS:
            return
        for key in names:
            if key not in self._answers and len(self._answers) >= MAX_QUESTIONS:
                self._notes.cut("network.dns", MAX_QUESTIONS)
                return
            answers = self._answers.setdefault(key, {})
            for record in message.an if message.qr else ():
                if len(answers) < MAX_ANSWERS:
                    answers[_kind(record.type), _data(record)] = None

    def dns(self) -> list[dict[str, Any]]:
        """The report's ``network.dns``."""
        return [
            {
                "request": name,
                "type": kind,
                "answers": [{"type": found, "data": data} for found, data in answers],
            }
            for (name, kind), answers in self._answers.items()
        ]

    def domains(self) -> list[dict[str, str]]:
        """The report's ``network.domains``: each name with its first address, or none."""
        addresses: dict[str, str] = {}
        for (name, kind), answers in self._answers.items():
            if kind == "PTR":
                continue
            known = addresses.setdefault(name, "")
            if not known:
                found = (data for kind, data in answers if kind in ("A", "AAAA"))
                addresses[name] = next(found, "")
        return [{"domain": name, "ip": address} for name, address in addresses.items()]


class DnsDialogue:
    """DNS over TCP: messages with their length before them, either way."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._asked = b""
        self._answered = b""

    def request(self, data: bytes) -> None:
        self._asked = self._messages(self._asked + data)

    def response(self, data: bytes) -> None:
        self._answered = self._messages(self._answered + data)

    def _messages(self, data: bytes) -> bytes:
        while len(data) >= 2:
            length = int.from_bytes(data[:2])
            if len(data) < 2 + length:
                # a message that can never be whole is not waited for
                return data if length <= MAX_MESSAGE else b""
            self._questions.message(data[2 : 2 + length])
            data = data[2 + length :]
        return data


def _name(name: str) -> str:
    return clip(name.encode("utf-8", "backslashreplace").decode(), 255).rstrip(".").lower()


def _kind(number: int) -> str:
    return _TYPES.get(number, f"TYPE{number}")


def _data(record: Any) -> str:
    """An answer's data as text: what a person would call it."""
    try:
        match _kind(record.type):
            case "A":
                return socket.inet_ntop(socket.AF_INET, record.ip)
            case "AAAA":
                return socket.inet_ntop(socket.AF_INET6, record.ip6)
            case "CNAME":
                return _name(record.cname)
            case "NS":
                return _name(record.nsname)
            case "PTR":
                return _name(record.ptrname)
            case "MX":
                return f"{record.preference} {_name(record.mxname)}"
            case "SRV":
                return f"{record.priority} {record.weight} {record.port} {_name(record.srvname)}"
            case "TXT":
                return clip(" ".join(str(text) for text in record.text), MAX_DATA)
    except PARSE_ERRORS:
        pass  # it says one thing and holds another: shown as it is
    return clip(bytes(record.rdata).hex(), MAX_DATA)
