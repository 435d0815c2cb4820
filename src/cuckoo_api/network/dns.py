"""Just enough DNS for a sinkhole: one question in, one answer out. Pure functions."""

from __future__ import annotations

import ipaddress
import struct

A, IN = 1, 1
TTL = 60
MAX_QUESTION = 512
MAX_NAME = 255
MAX_LABEL = 63
_HEADER = struct.Struct(">6H")
_RESPONSE, _OPCODE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080


def answer(question: bytes, address: str) -> bytes | None:
    """The response to a query: ``address`` for every A, no record for any other type.

    None for what is no query with exactly one plain question: it is dropped.
    """
    if not _HEADER.size < len(question) <= MAX_QUESTION:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(question)
    if flags & (_RESPONSE | _OPCODE) or questions != 1:
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
    reply = _RESPONSE | _RECURSION_AVAILABLE | (flags & _RECURSION_DESIRED)
    header = _HEADER.pack(number, reply, 1, int(bool(records)), 0, 0)
    return header + question[_HEADER.size : end + 4] + records


def _end_of_name(packet: bytes, start: int) -> int | None:
    """Where the name ends; None for pointers, which no question has, and for what overruns."""
    end = start
    while end < len(packet) and end - start < MAX_NAME:
        length = packet[end]
        if length > MAX_LABEL:
            return None
        end += 1 + length
        if length == 0:
            return end
    return None
