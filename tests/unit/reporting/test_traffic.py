"""A packet capture becomes ``network``."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import re
import socket
import ssl
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dpkt
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors import network
from cuckoo_api.reporting.processors.traffic import bodies, talk
from cuckoo_api.reporting.processors.traffic.fingerprints import ja3, ja4
from cuckoo_api.reporting.processors.traffic.streams import Budget, Direction

Parse = Callable[[bytes], dict[str, Any]]
GUEST, SERVER, RESULTS = "192.168.55.10", "203.0.113.5", "192.168.55.1"
SYN, ACK, FIN, RST, PSH = (
    dpkt.tcp.TH_SYN,
    dpkt.tcp.TH_ACK,
    dpkt.tcp.TH_FIN,
    dpkt.tcp.TH_RST,
    dpkt.tcp.TH_PUSH,
)


@pytest.fixture
def parse(folder: Path, evidence: Evidence, job: Job, notes: Notes) -> Parse:
    def run(capture: bytes) -> dict[str, Any]:
        (folder / "dump.pcap").write_bytes(capture)
        decoded: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode(network.run(evidence, job, notes))
        )
        return decoded

    return run


def ip(src: str, dst: str, inner: Any, protocol: int) -> bytes:
    packet = dpkt.ip.IP(
        src=socket.inet_aton(src), dst=socket.inet_aton(dst), p=protocol, data=inner, ttl=64
    )
    packet.len = len(packet)
    return bytes(dpkt.ethernet.Ethernet(data=packet, type=dpkt.ethernet.ETH_TYPE_IP))


def udp(src: str, sport: int, dst: str, dport: int, data: bytes) -> bytes:
    inner = dpkt.udp.UDP(sport=sport, dport=dport, data=data, ulen=8 + len(data))
    return ip(src, dst, inner, dpkt.ip.IP_PROTO_UDP)


def tcp(
    src: str, sport: int, dst: str, dport: int, flags: int, seq: int, data: bytes = b""
) -> bytes:
    inner = dpkt.tcp.TCP(sport=sport, dport=dport, flags=flags, seq=seq % 2**32, data=data)
    return ip(src, dst, inner, dpkt.ip.IP_PROTO_TCP)


def pcap(packets: Sequence[bytes], link: int = 1) -> bytes:
    out = io.BytesIO()
    writer = dpkt.pcap.Writer(out, linktype=link)
    for number, packet in enumerate(packets):
        writer.writepkt(packet, ts=1700000000 + number / 10)
    return out.getvalue()


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def tls_handshake(name: str, folder: Path) -> tuple[bytes, bytes]:
    """The first words of a real client and of a real server, OpenSSL's."""
    client, server = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    both = folder / "server.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN={name} -keyout {both} -out {both}.crt && cat {both}.crt >> {both}",
        shell=True, check=True, capture_output=True,
    )  # fmt: skip
    server.load_cert_chain(both)
    client.set_alpn_protocols(["h2", "http/1.1"])
    asked, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(answered, asked, server_hostname=name)
    other = server.wrap_bio(asked, answered, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        one.do_handshake()
    said = asked.read()
    asked.write(said)
    with pytest.raises(ssl.SSLWantReadError):
        other.do_handshake()
    return said, answered.read()


def conversation(
    request: Sequence[bytes], response: Sequence[bytes] = (), *, port: int = 80, sport: int = 40000
) -> list[bytes]:
    """A connection, each list one side's segments; the client's numbers wrap around."""
    client, server = 2**32 - 10, 1000
    packets = [
        tcp(GUEST, sport, SERVER, port, SYN, client),
        tcp(SERVER, port, GUEST, sport, SYN | ACK, server),
    ]
    client, server = client + 1, server + 1
    for data in request:
        packets.append(tcp(GUEST, sport, SERVER, port, ACK | PSH, client, data))
        client += len(data)
    for data in response:
        packets.append(tcp(SERVER, port, GUEST, sport, ACK | PSH, server, data))
        server += len(data)
    packets.append(tcp(GUEST, sport, SERVER, port, FIN | ACK, client))
    return packets


def dns_query(name: str, kind: int = 1) -> bytes:
    return bytes(dpkt.dns.DNS(id=7, qd=[dpkt.dns.DNS.Q(name=name, type=kind)]))


def dns_answer(name: str, address: str) -> bytes:
    answer = dpkt.dns.DNS.RR(name=name, type=1, ip=socket.inet_aton(address), ttl=60)
    question = dpkt.dns.DNS.Q(name=name, type=1)
    return bytes(dpkt.dns.DNS(id=7, op=0x8180, qd=[question], an=[answer]))


def client_hello(name: str) -> bytes:
    server_name = struct.pack(">HBH", len(name) + 3, 0, len(name)) + name.encode()
    alpn = b"\x00\x03\x02h2"
    extensions = b"".join(
        struct.pack(">HH", kind, len(data)) + data
        for kind, data in ((0, server_name), (16, alpn), (43, b"\x02\x03\x04"))
    )
    body = (
        b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
        + struct.pack(">H", len(extensions)) + extensions
    )  # fmt: skip
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def test_dns_names_hosts_and_the_hash_of_the_capture(parse: Parse) -> None:
    capture = pcap(
        [
            udp(GUEST, 5000, "192.168.55.1", 53, dns_query("Evil.Example")),
            udp("192.168.55.1", 53, GUEST, 5000, dns_answer("evil.example", SERVER)),
            udp(GUEST, 5001, "192.168.55.1", 53, dns_query("gone.example")),
            udp(GUEST, 5353, "224.0.0.251", 5353, b"multicast"),
        ]
    )

    section = parse(capture)

    assert section["dns"] == [
        {"request": "evil.example", "type": "A", "answers": [{"type": "A", "data": SERVER}]},
        {"request": "gone.example", "type": "A", "answers": []},
    ]
    assert section["domains"] == [
        {"domain": "evil.example", "ip": SERVER},
        {"domain": "gone.example", "ip": ""},
    ]
    assert section["hosts"] == ["192.168.55.1"]
    assert section["pcap_sha256"] == hashlib.sha256(capture).hexdigest()
    first = section["udp"][0]
    assert (first["src"], first["dport"], first["packets"], first["time"]) == (GUEST, 53, 2, 0)


def test_dns_over_tcp(parse: Parse) -> None:
    query, answer = dns_query("tcp.example"), dns_answer("tcp.example", SERVER)
    framed = [len(message).to_bytes(2) + message for message in (query, answer)]

    section = parse(pcap(conversation([framed[0][:9], framed[0][9:]], [framed[1]], port=53)))

    assert section["domains"] == [{"domain": "tcp.example", "ip": SERVER}]


def test_http_requests_with_their_responses(parse: Parse) -> None:
    section = parse(
        pcap(
            conversation(
                [
                    b"GET /a?b HTTP/1.1\r\nHost: evil.exa",
                    b"mple\r\nUser-Agent: bad/1.0\r\n\r\n",
                    b"POST /up HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5\r\n\r\nhello",
                    b"HEAD /h HTTP/1.1\r\nHost: evil.example\r\n\r\n",
                    b"GET /last HTTP/1.0\r\nHost: evil.example\r\n\r\n",
                ],
                [
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n",
                    b"3\r\nefg\r\n0\r\n\r\n",
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
                    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nsorry",
                ],
            )
        )
    )

    seen = [
        (item["method"], item["uri"], item["status"], item["request_size"], item["response_size"])
        for item in section["http"]
    ]
    assert seen == [
        ("GET", "http://evil.example/a?b", 200, 0, 7),
        ("POST", "http://evil.example/up", 204, 5, 0),
        ("HEAD", "http://evil.example/h", 200, 0, 0),
        ("GET", "http://evil.example/last", 404, 0, 5),
    ]
    first = section["http"][0]
    assert (first["host"], first["user-agent"]) == ("evil.example", "bad/1.0")
    assert (first["dst"], first["dport"]) == (SERVER, 80)
    assert section["http"][3]["content-type"] == "text/plain"
    assert section["hosts"] == [SERVER]


def test_segments_out_of_order_and_sent_twice(parse: Parse) -> None:
    packets = conversation(
        [b"GET /x HT", b"TP/1.1\r\n", b"Host: e.example\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd"],
    )
    order = [0, 1, 4, 3, 3, 2, 6, 5, 7, 7, 8]

    section = parse(pcap([packets[number] for number in order]))

    [request] = section["http"]
    assert request["uri"] == "http://e.example/x"
    assert request["response_size"] == 4


def test_bodies_become_files(parse: Parse, folder: Path) -> None:
    packed = gzip.compress(b"MZ payload")
    (folder / "network" / "of an earlier report").touch()

    section = parse(
        pcap(
            conversation(
                [
                    b"POST /up HTTP/1.1\r\nHost: e\r\nContent-Length: 6\r\n\r\nstolen",
                    b"GET /1 HTTP/1.1\r\nHost: e\r\n\r\n",
                    b"GET /2 HTTP/1.1\r\nHost: e\r\n\r\n",
                ],
                [
                    b"HTTP/1.1 200 OK\r\nX-Own: 1\r\nContent-Length: 0\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                    b"4\r\nstol\r\n2\r\nen\r\n0\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
                    % len(packed) + packed,
                ],
            )
        )
    )  # fmt: skip

    post, first, second = section["http"]
    sha256 = hashlib.sha256(b"stolen").hexdigest()
    assert post["req"] == {
        "path": f"network/{sha256}",
        "size": 6,
        "truncated": False,
        "type": "ASCII text, with no line terminators",
        "md5": hashlib.md5(b"stolen").hexdigest(),
        "sha1": hashlib.sha1(b"stolen").hexdigest(),
        "sha256": sha256,
    }
    assert post["resp"] is None
    assert post["request"] == "POST /up HTTP/1.1\r\nHost: e\r\nContent-Length: 6"
    assert post["response"] == "HTTP/1.1 200 OK\r\nX-Own: 1\r\nContent-Length: 0"
    assert post["time"] == 0.2
    assert (first["req"], first["resp"]["path"]) == (None, f"network/{sha256}")
    assert (folder / second["resp"]["path"]).read_bytes() == b"MZ payload"
    assert len(list((folder / "network").iterdir())) == 2


def test_bodies_are_kept_within_limits(
    parse: Parse, folder: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY", 1000)
    monkeypatch.setattr(bodies, "MAX_BODIES_SIZE", 2500)
    bomb = gzip.compress(bytes(1_000_000))
    ask = b"GET / HTTP/1.1\r\nHost: e\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1200\r\n\r\n"
    packed = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)

    section = parse(
        pcap(
            conversation([ask], [packed + bomb], sport=40000)
            + conversation([ask * 3], [head + b"a" * 1200, head + b"b" * 1200, head], sport=40001)
        )
    )

    found = [(item["resp"] or {}).get("size") for item in section["http"]]
    assert found == [1000, 1000, 500, None]
    assert [(item["resp"] or {}).get("truncated") for item in section["http"][:3]] == [True] * 3
    assert section["http"][1]["response_size"] == 1200
    assert sum(path.stat().st_size for path in (folder / "network").iterdir()) == 2500
    assert "network.http, bodies in all: cut at 2500" in notes.lines


def test_a_body_is_counted_and_not_kept(parse: Parse) -> None:
    body = bytes(60_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 6000000\r\n\r\n"

    section = parse(
        pcap(conversation([b"GET /big HTTP/1.1\r\nHost: e:8080\r\n\r\n"], [head, *[body] * 100]))
    )

    assert section["http"][0]["response_size"] == 6_000_000
    assert section["tcp"][0]["bytes"] > 6_000_000


def test_the_name_in_a_tls_hello(parse: Parse) -> None:
    hello = client_hello("c2.example")

    section = parse(pcap(conversation([hello[:20], hello[20:]], port=443)))

    [entry] = section["tls"]
    assert (entry["sni"], entry["version"], entry["alpn"]) == ("c2.example", "TLS 1.3", ["h2"])
    assert entry["dport"] == 443


@pytest.mark.slow
def test_a_client_and_a_server_have_fingerprints(parse: Parse, tmp_path: Path) -> None:
    client, server = tls_handshake("c2.example", tmp_path)

    [entry] = parse(pcap(conversation([client], [server[:40], server[40:]], port=8443)))["tls"]

    assert (entry["sni"], entry["version"], entry["chosen"]) == ("c2.example", "TLS 1.3", "TLS 1.3")
    assert re.fullmatch(r"t13d[0-9]{4}h2_[0-9a-f]{12}_[0-9a-f]{12}", entry["ja4"])
    assert re.fullmatch(r"[0-9a-f]{32}", entry["ja3"])
    # what the server of TLS 1.3 chose: its cipher, key share and version
    cipher = int.from_bytes(server[44 + server[43] : 46 + server[43]])
    assert entry["ja3s"] == hashlib.md5(f"771,{cipher},43-51".encode()).hexdigest()
    [unheard] = parse(pcap(conversation([client], port=8443)))["tls"]
    assert (unheard["chosen"], unheard["ja3s"]) == (None, None)


def test_fingerprints_are_those_that_others_publish() -> None:
    ciphers = [47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4]
    assert ja3(769, ciphers, [0, 10, 11], [23, 24, 25], [0]) == "ada70206e40642a3e4461f35503241d5"
    assert ja3(769, [0x1A1A, *ciphers], [0, 0xFAFA, 10, 11], [0x2A2A, 23, 24, 25], [0]) == (
        "ada70206e40642a3e4461f35503241d5"
    )
    chrome = {
        "version": 0x304,
        "ciphers": numbers("4a4a 1301 1302 1303 c02b c02f c02c c030 cca9 cca8 c013 c014 009c 009d "
                           "002f 0035"),
        "extensions": numbers("caca 001b 0000 0033 0010 4469 0017 002d 000d 0005 0023 0012 002b "
                              "ff01 000b 000a 0015 dada"),
        "signatures": numbers("0403 0804 0401 0503 0805 0501 0806 0601"),
    }  # fmt: skip
    assert ja4(**chrome, alpn=[b"h2", b"http/1.1"]) == "t13d1516h2_8daaf6152771_e5627efa2ab1"
    assert ja4(**chrome, alpn=[b"\x1ab"]).startswith("t13d151612_")
    assert ja4(0x301, [], [], [], []) == "t10i000000_000000000000_000000000000"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_capture(
    evidence: Evidence, folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BODIES_SIZE", 100_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    peaks = []
    for count in (30, 300):
        packets = conversation(
            [b"GET / HTTP/1.1\r\nHost: e\r\n\r\n"], [head, *[bytes(30_000)] * count]
        )
        (folder / "dump.pcap").write_bytes(pcap(packets))
        del packets
        tracemalloc.start()
        section = network.run(evidence, job, Notes())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert section["http"][0]["response_size"] == 30_000 * count

    assert peaks[1] < peaks[0] * 1.1


def test_the_sandbox_itself_is_left_out(parse: Parse) -> None:
    section = parse(
        pcap(
            [
                tcp(GUEST, 40000, RESULTS, 2042, SYN, 1),
                tcp(RESULTS, 2042, GUEST, 40000, SYN | ACK, 1),
                tcp(RESULTS, 50000, GUEST, 8000, SYN, 1),
                tcp(GUEST, 40001, SERVER, 2042, SYN, 1),
            ]
        )
    )

    assert [(item["dst"], item["dport"]) for item in section["tcp"]] == [(SERVER, 2042)]
    assert section["hosts"] == [SERVER]


def test_pings(parse: Parse) -> None:
    echo = dpkt.icmp.ICMP.Echo(id=1, seq=1, data=b"exfil")
    message = dpkt.icmp.ICMP(type=8, code=0, data=echo)

    section = parse(pcap([ip(GUEST, SERVER, message, dpkt.ip.IP_PROTO_ICMP)] * 3))

    [entry] = section["icmp"]
    assert (entry["dst"], entry["type"], entry["packets"]) == (SERVER, 8, 3)
    assert "exfil" in entry["data"]


def test_a_capture_that_breaks_off_gives_what_came_before(parse: Parse, notes: Notes) -> None:
    whole = pcap([udp(GUEST, 5000, SERVER, 53, dns_query("kept.example"))] * 2)

    section = parse(whole[:-30])

    assert [item["domain"] for item in section["domains"]] == ["kept.example"]


def test_a_packet_length_of_four_gigabytes_is_not_believed(parse: Parse, notes: Notes) -> None:
    good = pcap([udp(GUEST, 5000, SERVER, 53, dns_query("kept.example"))])

    section = parse(good + struct.pack("<IIII", 1, 1, 0xFFFFFFFF, 0xFFFFFFFF) + b"x")

    assert section["domains"][0]["domain"] == "kept.example"
    assert any("breaks off" in note for note in notes.lines)


@pytest.mark.parametrize(("order", "magic", "parts"), [
    ("<", 0xA1B2C3D4, 10**6), (">", 0xA1B2C3D4, 10**6),
    ("<", 0xA1B23C4D, 10**9), (">", 0xA1B23C4D, 10**9),
])  # fmt: skip
def test_every_form_of_a_capture(parse: Parse, order: str, magic: int, parts: int) -> None:
    capture = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    for second, part in ((1_700_000_000, 0), (1_700_000_001, parts // 4)):
        frame = tcp(GUEST, 1000 + second % 10, SERVER, 80, SYN, 1)
        capture += struct.pack(f"{order}IIII", second, part, len(frame), len(frame)) + frame

    assert [(item["sport"], item["time"]) for item in parse(capture)["tcp"]] == [
        (1000, 0.0), (1001, 1.25),
    ]  # fmt: skip


def test_damaged_packets_read_the_same_the_short_way_and_by_the_library(parse: Parse) -> None:
    chance = random.Random(5)
    frames = []
    for number in range(300):
        ends = (GUEST, 1000 + number, SERVER, 80)
        frame = bytearray(
            tcp(*ends, chance.choice((SYN, ACK, RST | ACK)), number, b"GET / HTTP/1.1")
        )
        for _ in range(chance.randrange(3)):
            frame[chance.choice((14, 16, 17, 20, 21, 23, 46, 47))] = chance.randrange(256)
        size = chance.choice((len(frame), len(frame), chance.randrange(20, len(frame))))
        frames.append(bytes(frame[:size]))

    short = parse(pcap(frames))
    # without the frame's own head, which the short way knows alone
    library = parse(pcap([frame[14:] for frame in frames], link=101))

    assert 100 < len(short["tcp"]) < 300
    assert short | {"pcap_sha256": ""} == library | {"pcap_sha256": ""}


@pytest.mark.parametrize("content", [b"", b"\x00" * 24, b"not a capture at all, but longer"])
def test_what_is_no_capture_is_a_note(parse: Parse, notes: Notes, content: bytes) -> None:
    assert parse(content)["hosts"] == []
    assert any("cannot be read" in note for note in notes.lines)


def test_what_is_cut_is_said(parse: Parse, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "MAX_FLOWS", 3)

    section = parse(pcap([udp(GUEST, 1000 + n, SERVER, 9, b"x") for n in range(9)]))

    assert len(section["udp"]) == 3
    assert notes.lines == ["network, TCP or UDP conversations: cut at 3"]


def test_what_waits_for_a_lost_segment_is_bounded() -> None:
    got: list[bytes] = []
    budget = Budget(100)
    stream = Direction(got.append, budget)
    stream.syn(0)

    stream.segment(11, b"x" * 60)
    stream.segment(200, b"y" * 60)

    assert (got, stream.closed, budget.left) == ([], True, 100)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_no_capture_breaks_it(parse: Parse, data: st.DataObject) -> None:
    packets = [
        udp(GUEST, 5000, SERVER, 53, dns_answer("e.example", SERVER)),
        *conversation([client_hello("c2.example")], port=443),
        *conversation(
            [b"POST /a HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd"],
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"],
        ),
    ]
    capture = bytearray(pcap(packets))
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(capture) - 1))
        capture[at] = data.draw(st.integers(0, 255))

    section = parse(bytes(capture[: data.draw(st.integers(0, len(capture)))]))

    assert len(section) == 9
