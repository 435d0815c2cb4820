"""A capture's packets one by one, never trusting a length in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import dpkt

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Input

MAX_PACKETS = 1_000_000
MAX_PACKET = 1 << 20

IP = Any
"""An IPv4 or IPv6 packet of dpkt, which has no types."""

PARSE_ERRORS = (
    dpkt.Error,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
    struct.error,
    RecursionError,
    ArithmeticError,
)
"""All that dpkt has been seen to raise on packets that were made to break it."""

_ETHERNET, _RAW, _LINUX_SLL = 1, (12, 14, 101), 113


def datagrams(source: Input, notes: Notes) -> Iterator[tuple[float, IP]]:
    """Time and IP packet, for each packet that is one. Ends quietly where the capture breaks."""
    try:
        reader = dpkt.pcap.UniversalReader(_Guarded(source))
    except PARSE_ERRORS as exc:
        notes.add(f"network: the capture cannot be read: {exc}")
        return
    link = reader.datalink()
    packets = iter(reader)
    for _ in range(MAX_PACKETS):
        try:
            seen, data = next(packets)
        except StopIteration:
            return
        except PARSE_ERRORS as exc:
            notes.add(f"network: the capture breaks off: {exc}")
            return
        try:
            packet = _ip(link, data)
        except PARSE_ERRORS:
            continue
        if packet is not None:
            yield float(seen), packet
    notes.cut("network, packets", MAX_PACKETS)


def _ip(link: int, data: bytes) -> IP | None:
    if link == _ETHERNET:
        inner = dpkt.ethernet.Ethernet(data).data
    elif link == _LINUX_SLL:
        inner = dpkt.sll.SLL(data).data
    elif link in _RAW and data:
        inner = dpkt.ip6.IP6(data) if data[0] >> 4 == 6 else dpkt.ip.IP(data)
    else:
        return None
    return inner if isinstance(inner, dpkt.ip.IP | dpkt.ip6.IP6) else None


class _Guarded:
    """The file as dpkt reads it: a length from a header cannot make it take all memory."""

    name = "capture"

    def __init__(self, source: Input) -> None:
        self._source = source

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_PACKET:
            raise ValueError(f"a packet of {size} bytes")
        return self._source.read(size)

    def seek(self, offset: int) -> None:
        if offset:
            raise ValueError("no seeking but to the beginning")
        self._source.rewind()
