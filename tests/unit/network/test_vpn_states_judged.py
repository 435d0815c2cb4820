"""When a tunnel is up, stale or down, by what was seen of it and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cuckoo_api.network import probe, tunnels, vpn
from cuckoo_api.network.rooter.client import RooterClient, RooterRefused, RooterUnavailable
from cuckoo_api.network.rooter.commands import Peer
from cuckoo_api.network.tunnels import Look, look_at
from cuckoo_api.network.vpn import HANDSHAKE, PERIOD, SILENCE, Judge, Monitor, VpnState
from cuckoo_api.settings import Vpn

pytestmark = pytest.mark.slow

WALL = 1_800_000_000.0


def judged(*looks: tuple[float, Look]) -> list[str]:
    """The statuses after looks at these moments."""
    judge = Judge()
    return [judge.judge(look, at, WALL + at)[0] for at, look in looks]


def test_a_counter_has_to_rise() -> None:
    def heard(count: int) -> Look:
        return Look(present=True, heard=count)

    assert judged(
        (0, heard(5)), (SILENCE - 1, heard(5)), (SILENCE, heard(5)), (SILENCE + 5, heard(6)),
        (SILENCE + 6, heard(0)), (2 * SILENCE + 4, heard(0)), (2 * SILENCE + 6, heard(0)),
    ) == ["up", "up", "stale", "up", "up", "up", "stale"]  # fmt: skip


def test_a_dead_peer_is_stale_within_30_seconds_and_a_sign_each_ten_may_be_lost_once() -> None:
    looks = [number * PERIOD for number in range(20)]
    for phase in (0.01, PERIOD / 2, PERIOD - 0.01):
        last = looks[3] - phase  # the peer's last sign, between two looks
        seen = [Look(present=True, heard=int(at >= last)) for at in looks]
        said = judged(*zip(looks, seen, strict=True))
        assert looks[said.index("stale")] - last < 30
    living = [Look(present=True, heard=int(at // 20)) for at in looks]  # every other one is lost
    assert set(judged(*zip(looks, living, strict=True))) == {"up"}


def test_a_first_look_believes_a_young_handshake() -> None:
    def shaken(ago: float, heard: int = 7) -> Look:
        return Look(present=True, heard=heard, handshake=int(WALL - ago))

    assert judged((0, shaken(HANDSHAKE - 1)), (SILENCE, shaken(HANDSHAKE))) == ["up", "stale"]
    old = HANDSHAKE + 1
    assert judged((0, shaken(old)), (4, shaken(old)), (8, shaken(old, 8))) == [
        "stale", "stale", "up",
    ], "a tunnel that nobody used makes no new keys"  # fmt: skip
    assert judged((0, Look(present=True, heard=0, handshake=0))) == ["stale"]


def test_an_answer_decides_and_two_that_are_missing() -> None:
    def probed(answered: bool) -> Look:
        return Look(present=True, heard=1, handshake=int(WALL - 999), probed=answered)

    assert judged((0, probed(True))) == ["up"], "whatever else says"
    for heard in (None, 1):
        no = Look(present=True, heard=heard, probed=False, error="no answer")
        yes = Look(present=True, heard=heard, probed=True)
        assert judged((0, no), (5, no), (10, yes), (15, no)) == ["up", "stale", "up", "up"]


def test_what_is_not_there_is_down_and_what_does_not_connect_is_stale() -> None:
    assert judged((0, Look()), (1, Look(present=True, connected=False))) == ["down", "stale"]


# -- what is seen -------------------------------------------------------------------------------


class Wire:
    """A rooter that knows peers, or not."""

    def __init__(self, peers: list[Peer] | Exception) -> None:
        self._peers = peers

    async def peers(self, _vpn: str) -> list[Peer]:
        if isinstance(self._peers, Exception):
            raise self._peers
        return self._peers

    async def hello(self) -> None:
        if isinstance(self._peers, RooterUnavailable):
            raise self._peers


def client(peers: list[Peer] | Exception) -> RooterClient:
    return Wire(peers)  # type: ignore[return-value]


def peer(name: str, *allowed: str) -> Peer:
    return Peer(endpoint=name, handshake=5, rx_bytes=7, tx_bytes=0, allowed=list(allowed))


@pytest.mark.parametrize(
    ("carries", "address"),
    [
        (["0.0.0.0/0", "::/0"], "192.0.2.1"),
        (["0.0.0.0/1", "128.0.0.0/1"], "192.0.2.1"),
        (["10.0.0.0/8"], "10.0.0.0"),
    ],
)
async def test_wireguard_is_judged_by_the_peer_that_leads_out(
    carries: list[str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Vpn(name="wg", interface="lo", type="wireguard")
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(probe, "nudge", lambda *words: sent.append(words))
    office, silent = peer("office", "10.7.0.0/16", "fd00::/8"), peer("silent")
    way_out = peer("way out", *carries)
    for peers in ([office, silent, way_out], [way_out, silent, office]):
        seen = await look_at(wire, client(peers))
        assert (seen.present, seen.peer, seen.heard, seen.handshake) == (True, "way out", 7, 5)
    assert sent == [(address, "lo")] * 2


async def test_a_narrower_network_of_another_peer_is_stepped_round() -> None:
    tests = peer("tests", "192.0.2.0/24", "198.51.100.0/24")
    found = tunnels.exit_peer([peer("way out", "0.0.0.0/0"), tests])
    assert found is not None
    assert (found[0].endpoint, found[1]) == ("way out", "203.0.113.1")


async def test_a_wireguard_that_cannot_lead_out_is_not_connected() -> None:
    wire = Vpn(name="wg", interface="lo", type="wireguard")
    for peers in ([], [peer("six", "::/0")], [peer("none")]):
        assert not (await look_at(wire, client(peers))).connected
    refused = await look_at(wire, client(RooterRefused("wg: no such device")))
    assert (refused.present, refused.error) == (False, "wg: no such device")
    with pytest.raises(RooterUnavailable):
        await look_at(wire, client(RooterUnavailable("gone")))


async def test_a_missing_interface_is_all_there_is_to_see() -> None:
    seen = await look_at(Vpn(interface="nowhere0"), client([]))
    assert (seen.present, seen.error) == (False, "there is no interface nowhere0 that is up")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, Look(present=True, peer="192.0.2.7:1194", heard=7)),
        ({"state": "1,WAIT,,,,,,"}, Look(present=True, connected=False,
                                         error="OpenVPN is in state WAIT")),
        ({"state": "x"}, Look(present=True, connected=False, error="OpenVPN is in state unknown")),
        ({"status": "TCP/UDP read bytes,many"}, Look(present=True, peer="192.0.2.7:1194", heard=0)),
    ],
)  # fmt: skip
async def test_openvpn_is_asked_at_its_management(
    tmp_path: Path, answers: dict[str, str], expected: Look
) -> None:
    said = {
        "state": "1,CONNECTED,SUCCESS,10.8.0.2,192.0.2.7,1194,,",
        "status": "TCP/UDP read bytes,7",
    } | answers
    quits: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b">INFO:OpenVPN Management Interface Version 5\r\n")
        while line := await reader.readline():
            if line == b"quit\n":
                quits.put_nowait(line)
                break
            writer.write(f"{said[line.decode().strip()]}\r\nEND\r\n".encode())
        writer.close()
        await writer.wait_closed()

    for where, server in (
        (str(tmp_path / "sock"), await asyncio.start_unix_server(serve, tmp_path / "sock")),
        ("", await asyncio.start_server(serve, "127.0.0.1", 0)),
    ):
        async with server:
            name = server.sockets[0].getsockname()
            management = where or f"127.0.0.1:{name[1]}"
            one = Vpn(interface="lo", type="openvpn", management=management)
            seen = await look_at(one, client([]))
            kept = {n: getattr(seen, n) for n in ("present", "connected", "peer", "heard", "error")}
            assert kept == {n: getattr(expected, n) for n in kept}
            async with asyncio.timeout(5):
                assert await quits.get(), "it serves one at a time"


@pytest.mark.parametrize("answer", [b"", b"x" * (1 << 20), b"line\r\n" * 500])
async def test_a_management_that_talks_nonsense_is_none(
    tmp_path: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "TIMEOUT", 0.2)
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        with contextlib.suppress(ConnectionError):  # it hangs up on what it has not read
            await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_unix_server(serve, tmp_path / "sock"):
        one = Vpn(interface="lo", type="openvpn", management=str(tmp_path / "sock"))
        seen = await look_at(one, client([]))
        await asyncio.wait_for(ended.wait(), 5)
    assert (seen.present, "OpenVPN's management" in seen.error) == (False, True)
    gone = Vpn(interface="lo", type="openvpn", management=str(tmp_path / "nobody"))
    assert "No such file" in (await look_at(gone, client([]))).error


# -- probes -------------------------------------------------------------------------------------


@pytest.fixture
async def web() -> AsyncIterator[Callable[[bytes], int]]:
    """A page with this body; its port."""
    body = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nX: 9.9.9.9\r\n\r\n" + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:

        def make(content: bytes) -> int:
            nonlocal body
            body = content
            return int(server.sockets[0].getsockname()[1])

        yield make


@pytest.mark.parametrize(
    ("body", "address"),
    [
        (b"203.0.113.1\n", "203.0.113.1"),
        (b'{"ip":"203.0.113.1"}', "203.0.113.1"),
        (b"1.2.3.4.5 999.1.1.1 and 203.0.113.2", "203.0.113.2"),
        (b"x" * 100_000, ""),
    ],
)
async def test_a_page_tells_the_address_it_saw(
    web: Callable[[bytes], int], body: bytes, address: str
) -> None:
    reply = await probe.ask(probe.parse(f"http://127.0.0.1:{web(body)}/ip"), "lo")
    assert (reply.answered, reply.address) == (True, address)


async def test_what_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT", 0.05)
    assert (await probe.ask(probe.parse("127.0.0.1:1"), "lo")).error.startswith("127.0.0.1: ")
    assert not (await probe.ask(probe.parse("192.0.2.1:80"), "lo")).answered
    assert not (await probe.ask(probe.parse("127.0.0.1"), "nowhere0")).answered


def test_probes_are_hosts_ports_or_pages() -> None:
    shown = {text: probe.parse(text) for text in ("h", "h:7", "http://h/a/b", "http://h:8/")}
    assert [(p.host, p.port, p.path) for p in shown.values()] == [
        ("h", 0, ""), ("h", 7, ""), ("h", 80, "/a/b"), ("h", 8, "/"),
    ]  # fmt: skip


def test_an_echo_has_its_checksum() -> None:
    packet = probe.echo_request(b"12345678")
    total = sum(int.from_bytes(packet[n : n + 2]) for n in range(0, len(packet), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


# -- the monitor --------------------------------------------------------------------------------


async def test_changes_are_told_once_and_known_until_the_file_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, str, str]] = []
    seen: Look | Exception = Look(present=True, address="203.0.113.1")

    async def look(*_: object) -> Look:
        if isinstance(seen, Exception):
            raise seen
        return seen

    def tell(state: VpnState, before: str) -> None:
        told.append((state.name, before, state.status))

    monkeypatch.setattr(vpn, "look_at", look)
    one = Vpn(name="vpn0", interface="tun0")
    monitor = Monitor({"vpn0": one}, client([]), tell)
    assert monitor.why("vpn0") == "its state is not known yet"
    await monitor.look()
    await monitor.look()
    assert (monitor.is_up("vpn0"), monitor.exit_address("vpn0")) == (True, "203.0.113.1")
    since = monitor.known()[0].since
    seen = RooterUnavailable("gone")
    with pytest.raises(RooterUnavailable):
        await monitor.look()
    assert monitor.why("vpn0") == "it is down: the rooter does not answer"
    assert told == [("vpn0", "", "up"), ("vpn0", "up", "down")]
    assert monitor.known()[0].since >= since
    monitor.reconfigure({"vpn0": one})
    assert monitor.known(), "it is the same one"
    monitor.reconfigure({"vpn0": Vpn(name="vpn0", interface="tun1")})
    assert (monitor.known(), monitor.exit_address("vpn0")) == ([], "")
    await monitor.close()
