"""Just enough DNS for a sinkhole: one question in, one answer out. Pure functions."""

from __future__ import annotations

import ipaddress
import struct

A, AAAA, IN = 1, 28, 1
TTL = 60
MAX_QUESTION = 512
_HEADER = struct.Struct(">6H")


def answer(question: bytes, address: str) -> bytes | None:
    """The response to a query: ``address`` for every A, nothing for any other type.

    None for what is no query with exactly one plain question: it is dropped.
    """
    if not _HEADER.size < len(question) <= MAX_QUESTION:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(question)
    if flags & 0x8000 or flags & 0x7800 or questions != 1:
        return None
    end = _end_of_name(question, _HEADER.size)
    if end is None or end + 4 > len(question):
        return None
    kind, family = struct.unpack_from(">2H", question, end)
    records = b""
    if kind == A and family == IN:
        packed = ipaddress.IPv4Address(address).packed
        # the name is a pointer to the question's
        records = struct.pack(">HHHIH", 0xC000 | _HEADER.size, A, IN, TTL, len(packed)) + packed
    reply = 0x8080 | (flags & 0x0100)  # a response, recursion available, desired as asked
    header = _HEADER.pack(number, reply, 1, int(bool(records)), 0, 0)
    return header + question[_HEADER.size : end + 4] + records


def _end_of_name(packet: bytes, start: int) -> int | None:
    """Where the name ends; None for pointers, which no question has, and for what overruns."""
    while start < len(packet):
        length = packet[start]
        if length > 63:
            return None
        start += 1 + length
        if length == 0:
            return start
    return None
