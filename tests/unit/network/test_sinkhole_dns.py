"""The sinkhole's DNS: one answer for every name, and none for what is no question."""

from __future__ import annotations

import socket

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.network.dns import answer

ADDRESS = "192.0.2.1"


def query(name: str = "updates.demo.test", kind: int = dpkt.dns.DNS_A) -> bytes:
    return bytes(dpkt.dns.DNS(id=7, qd=[dpkt.dns.DNS.Q(name=name, type=kind)]))


def named(*labels: bytes) -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels)
    return query()[:12] + name + b"\0\0\1\0\1"


def test_every_name_leads_to_the_sinkhole() -> None:
    reply = dpkt.dns.DNS(answer(query(), ADDRESS))
    assert (reply.id, reply.qr, reply.rcode) == (7, dpkt.dns.DNS_R, dpkt.dns.DNS_RCODE_NOERR)
    assert [q.name for q in reply.qd] == ["updates.demo.test"]
    assert [(a.name, socket.inet_ntoa(a.ip)) for a in reply.an] == [("updates.demo.test", ADDRESS)]


@pytest.mark.parametrize("kind", [dpkt.dns.DNS_AAAA, dpkt.dns.DNS_MX, dpkt.dns.DNS_TXT, 255])
def test_other_types_have_no_answer(kind: int) -> None:
    reply = dpkt.dns.DNS(answer(query(kind=kind), ADDRESS))
    assert (reply.rcode, reply.an) == (dpkt.dns.DNS_RCODE_NOERR, [])


def test_what_comes_after_the_question_is_left_out() -> None:
    with_edns = query()[:11] + b"\1" + query()[12:] + b"\0\0\x29\x10\0\0\0\0\0\0\0"
    assert answer(with_edns, ADDRESS) == answer(query(), ADDRESS)


def test_the_longest_name_and_the_root() -> None:
    longest = named(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61)
    for packet in (longest, named()):
        reply = answer(packet, ADDRESS)
        assert reply is not None
        assert dpkt.dns.DNS(reply).an[0].ip == socket.inet_aton(ADDRESS)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        query()[:-1],
        query()[:2] + b"\x80" + query()[3:],  # a response
        query()[:2] + b"\x28" + query()[3:],  # an update
        query()[:4] + b"\0\0" + query()[6:],  # no question
        query()[:4] + b"\0\2" + query()[6:],  # two of them
        query()[:12] + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        query()[:12] + b"\x01a\xc0\x0c\0\1\0\1",  # the same, further on
        query()[:12] + b"\x3f" + b"a" * 63,  # a name without an end
        query()[:12] + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",  # a label of a kind there is not
        named(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 62),  # 256 bytes
        query() + b"\0" * 600,
    ],
)
def test_what_is_no_question_is_dropped(packet: bytes) -> None:
    assert answer(packet, ADDRESS) is None


@given(st.binary(max_size=600) | st.binary(max_size=300).map(lambda tail: query()[:12] + tail))
def test_no_packet_is_too_strange(packet: bytes) -> None:
    reply = answer(packet, ADDRESS)
    if reply is not None:
        assert dpkt.dns.DNS(reply).id == int.from_bytes(packet[:2], "big")
        assert len(reply) <= len(packet) + 16, "no more comes back than goes in, but for the record"


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3))
def test_every_well_formed_question_is_answered(labels: list[bytes]) -> None:
    reply = answer(named(*labels), ADDRESS)
    assert reply is not None
    assert reply[12:].startswith(named(*labels)[12:])
    assert reply.endswith(socket.inet_aton(ADDRESS))
