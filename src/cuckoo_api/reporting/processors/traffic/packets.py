"""A capture's packets one by one, never trusting a length in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import dpkt
import msgspec

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

_PCAP_HEAD = 24
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<IIII", 1e6),
    b"\xa1\xb2\xc3\xd4": (">IIII", 1e6),
    b"\x4d\x3c\xb2\xa1": ("<IIII", 1e9),
    b"\xa1\xb2\x3c\x4d": (">IIII", 1e9),
}
"""A record's head and what a second is divided into, by the file's first bytes."""
_TCP_OVER_IPV4 = struct.Struct(">12xHBxH2xHxB2x4s4sHHI4xH")
_LEAST_TCP = 14 + 20 + 20
_IPV4, _PLAIN_HEAD, _PART, _TCP = 0x0800, 0x45, 0x3FFF, 6


class Segment(msgspec.Struct, frozen=True, gc=False):
    """A TCP segment and whom it is from and to; the addresses as they are in the packet."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    sequence: int
    flags: int
    data: bytes


def datagrams(source: Input, notes: Notes) -> Iterator[tuple[float, Segment | IP]]:
    """Time and content of each packet that is one of IP: its TCP segment, or all of another's.

    Ends quietly where the capture breaks.
    """
    try:
        link, packets = _packets(source)
    except PARSE_ERRORS as exc:
        notes.add(f"network: the capture cannot be read: {exc}")
        return
    for _ in range(MAX_PACKETS):
        try:
            seen, data = next(packets)
        except StopIteration:
            return
        except PARSE_ERRORS as exc:
            notes.add(f"network: the capture breaks off: {exc}")
            return
        try:
            packet = (_plain(data) if link == _ETHERNET else None) or _any(link, data)
        except PARSE_ERRORS:
            continue
        if packet is not None:
            yield float(seen), packet
    notes.cut("network, packets", MAX_PACKETS)


def _packets(source: Input) -> tuple[int, Iterator[tuple[float, bytes]]]:
    """The kind of link, and each packet with its time."""
    head = source.read(_PCAP_HEAD)
    if head[:4] in _PCAP and len(head) == _PCAP_HEAD:
        form, parts = _PCAP[head[:4]]
        return struct.unpack(form, head[8:])[3], _records(source, struct.Struct(form), parts)
    source.rewind()
    reader = dpkt.pcap.UniversalReader(_Guarded(source))
    return reader.datalink(), iter(reader)


def _records(source: Input, form: struct.Struct, parts: float) -> Iterator[tuple[float, bytes]]:
    """What most captures are made of: dpkt takes longer for it than all else takes."""
    while head := source.read(form.size):
        seconds, fraction, size, _ = form.unpack(head)
        if size > MAX_PACKET:
            raise ValueError(f"a packet of {size} bytes")
        yield seconds + fraction / parts, source.read(size)


def _plain(frame: bytes) -> Segment | None:
    """What most packets are: TCP over IPv4 without options or parts. None for all else."""
    if len(frame) < _LEAST_TCP:
        return None
    kind, head, size, part, protocol, src, dst, sport, dport, sequence, more = (
        _TCP_OVER_IPV4.unpack_from(frame)
    )
    begin, end = 34 + (more >> 12) * 4, 14 + size
    if (
        (kind, head, protocol) != (_IPV4, _PLAIN_HEAD, _TCP)
        or part & _PART
        or min(begin, end) < _LEAST_TCP
    ):
        return None
    return Segment(src, dst, sport, dport, sequence, more & 0x1FF, frame[begin:end])


def _any(link: int, data: bytes) -> Segment | IP | None:
    packet = _ip(link, data)
    if packet is None or not isinstance(packet.data, dpkt.tcp.TCP):
        return packet
    tcp = packet.data
    data = bytes(tcp.data)
    return Segment(packet.src, packet.dst, tcp.sport, tcp.dport, tcp.seq, tcp.flags, data)


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
