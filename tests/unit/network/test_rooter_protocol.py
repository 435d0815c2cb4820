"""What the rooter does for whom, and in which order the kernel is told of it."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cuckoo_api.network.rooter import server
from cuckoo_api.network.rooter.client import RooterClient, RooterRefused, RooterUnavailable
from cuckoo_api.network.rooter.commands import Guard, Refused, Service, decode_answer, encode
from cuckoo_api.network.rooter.kernel import table_number
from cuckoo_api.network.rooter.netlink import KernelRefused
from cuckoo_api.network.rooter.ruleset import Exit
from cuckoo_api.network.rooter.server import Rooter
from cuckoo_api.settings import Network, Vpn
from cuckoo_api.settings.routing import (
    InetsimSection,
    RooterSection,
    RoutingSection,
    TorSection,
)
from rooterkit import NotedKernel, happens

pytestmark = pytest.mark.slow

NETWORK = Network(
    routing=RoutingSection(internet="eth0", drop=True, dns="192.0.2.53"),
    inetsim=InetsimSection(enabled=True, server="192.0.2.9", ports=("80:8080",)),
    tor=TorSection(enabled=True),
    rooter=RooterSection(interfaces=("virbr0",)),
    vpns={
        "vpn0": Vpn(name="vpn0", interface="tun0", dns="10.8.0.1", country="es"),
        "vpn1": Vpn(name="vpn1", interface="tun1", rt_table="77"),
    },
)
GUEST, OTHER = "192.168.55.11", "192.168.55.12"
TUN0 = Exit(interface="tun0", table=18000, dns="10.8.0.1")


@pytest.fixture
def kernel() -> NotedKernel:
    return NotedKernel()


@pytest.fixture
async def rooter(kernel: NotedKernel, tmp_path: Path) -> AsyncIterator[Rooter]:
    made = Rooter(NETWORK, kernel)
    await made.open(tmp_path / "sock")
    yield made
    await made.close()


@pytest.fixture
async def client(rooter: Rooter, tmp_path: Path) -> AsyncIterator[RooterClient]:
    made = RooterClient(tmp_path / "sock")
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("route", "way"),
    [
        ("drop", Exit()),
        ("internet", Exit(interface="eth0", table=254, dns="192.0.2.53")),
        ("inetsim", Exit(server="192.0.2.9", ports=((80, 8080),), dns="192.0.2.9")),
        ("tor", Exit(proxy=9040, proxy_dns=5353)),
        ("vpn0", TUN0),
        ("vpn1", Exit(interface="tun1", table=77, dns="192.0.2.53")),
        ("vpn:es", TUN0),
    ],
)
async def test_a_route_leads_where_routing_conf_says(
    client: RooterClient, kernel: NotedKernel, route: str, way: Exit
) -> None:
    await client.enable(GUEST, "virbr0", route)
    assert kernel.led == kernel.open == {GUEST: way}


async def test_the_way_is_there_before_the_door_opens_and_the_door_shut_first(
    client: RooterClient, kernel: NotedKernel
) -> None:
    kernel.log.clear()
    await client.enable(GUEST, "virbr0", "vpn0")
    await client.enable(GUEST, "virbr0", "internet")
    await client.disable(GUEST)
    assert kernel.log == [
        f"lead {GUEST}", f"open {GUEST}",
        "open to none", f"mislead {GUEST}", f"lead {GUEST}", f"open {GUEST}",
        "open to none", f"mislead {GUEST}",
    ]  # fmt: skip


@pytest.mark.parametrize("step", ["lead", "apply"])
async def test_a_route_that_the_kernel_refuses_leaves_the_guest_shut(
    client: RooterClient, kernel: NotedKernel, step: str
) -> None:
    kernel.refuses = {step}
    with pytest.raises(RooterRefused, match=r"tun0|nft"):
        await client.enable(GUEST, "virbr0", "vpn0")
    assert kernel.led == kernel.open == {}
    kernel.refuses.clear()
    await client.enable(GUEST, "virbr0", "vpn0")
    assert kernel.open == {GUEST: TUN0}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((GUEST, "virbr0", "vpn9"), "no route of this host"),
        ((GUEST, "virbr0", "vpn:random"), "no route of this host"),
        ((GUEST, "virbr0", "../x"), "no route of this host"),
        ((GUEST, "eth0", "vpn0"), "not among"),
        ((GUEST, 'virbr0" accept #', "vpn0"), "not among"),
        (("192.168.55.0/24", "virbr0", "vpn0"), "no IPv4 address"),
        (("127.0.0.1", "virbr0", "vpn0"), "no host's address"),
        (("224.0.0.1", "virbr0", "vpn0"), "no host's address"),
        (("0.0.0.0", "virbr0", "vpn0"), "no host's address"),
        (("::1", "virbr0", "vpn0"), "no IPv4 address"),
        (("a" * 500, "virbr0", "vpn0"), "no IPv4 address"),
    ],
)
async def test_what_is_not_in_the_file_cannot_be_had(
    client: RooterClient, kernel: NotedKernel, arguments: tuple[str, str, str], reason: str
) -> None:
    with pytest.raises(RooterRefused, match=reason) as refusal:
        await client.enable(*arguments)
    assert len(str(refusal.value)) < 200
    assert kernel.open == kernel.led == {}
    await client.hello()


@pytest.mark.parametrize(
    "services",
    [
        [Service("icmp", "192.0.2.1", 1)],
        [Service("tcp", "192.0.2.1", 0)],
        [Service("tcp", "192.0.2.1", 65536)],
        [Service("tcp", "all", 1)],
        [Service("tcp", "192.0.2.1", 1)] * 65,
    ],
)
async def test_services_are_ports_of_addresses(
    client: RooterClient, kernel: NotedKernel, services: list[Service]
) -> None:
    with pytest.raises(RooterRefused):
        await client.guard("virbr0", services)
    assert kernel.guards == {"virbr0": ()}


async def test_each_client_has_its_own_guests(
    rooter: Rooter, client: RooterClient, kernel: NotedKernel, tmp_path: Path
) -> None:
    await client.enable(GUEST, "virbr0", "vpn0")
    other = RooterClient(tmp_path / "sock")
    await other.enable(OTHER, "virbr0", "vpn1")
    with pytest.raises(RooterRefused, match="another client"):
        await other.enable(GUEST, "virbr0", "drop")
    await other.disable(GUEST)  # which is refused, and nobody's matter
    assert set(kernel.open) == {GUEST, OTHER}
    await other.close()
    await happens(lambda: set(kernel.open) == {GUEST})


async def test_a_lost_rooter_is_noticed_and_the_next_gets_the_guards(
    kernel: NotedKernel, tmp_path: Path
) -> None:
    first = Rooter(NETWORK, kernel)
    await first.open(tmp_path / "sock")
    client = RooterClient(tmp_path / "sock")
    await client.guard("virbr0", [Service("tcp", "192.0.2.1", 2042)])
    lost = await client.enable(GUEST, "virbr0", "vpn0")
    await first.close()
    await asyncio.wait_for(lost.wait(), 5)
    with pytest.raises(RooterUnavailable, match="Rooter not available"):
        await client.hello()

    kernel.guards = {}
    second = Rooter(NETWORK, kernel)
    await second.open(tmp_path / "sock")
    await client.hello()
    assert kernel.guards == {"virbr0": (Service("tcp", "192.0.2.1", 2042),)}
    await client.close()
    await second.close()


async def test_a_reload_shuts_those_only_whose_route_is_gone(
    rooter: Rooter, client: RooterClient, kernel: NotedKernel
) -> None:
    await client.enable(GUEST, "virbr0", "vpn0")
    await client.enable(OTHER, "virbr0", "vpn1")
    other = replace(NETWORK.vpns["vpn1"], interface="tun9")
    await rooter.reload(
        replace(
            NETWORK,
            vpns={**NETWORK.vpns, "vpn1": other},
            rooter=RooterSection(interfaces=("virbr0", "virbr1")),
        )
    )
    assert set(kernel.open) == set(kernel.led) == {GUEST}
    assert set(kernel.guards) == {"virbr0", "virbr1"}
    await rooter.reload(replace(NETWORK, rooter=RooterSection(interfaces=("virbr1",))))
    assert kernel.open == {}
    assert set(kernel.guards) == {"virbr0", "virbr1"}, "what it has shut stays shut"


async def test_a_tunnel_that_is_back_is_filled_again(
    client: RooterClient, kernel: NotedKernel
) -> None:
    await client.enable(GUEST, "virbr0", "vpn0")
    kernel.news.put_nowait("tun7")
    kernel.news.put_nowait("tun0")
    await happens(lambda: "fill tun0" in kernel.log)
    assert "fill tun7" not in kernel.log


async def test_peers_are_told_without_their_keys(client: RooterClient, kernel: NotedKernel) -> None:
    assert await client.peers("vpn0") == kernel.known
    with pytest.raises(RooterRefused, match="no VPN"):
        await client.peers("eth0")


async def test_strangers_are_not_let_in(
    rooter: Rooter, client: RooterClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(server, "peer_of", lambda _: (1, nobody.pw_uid))
    with pytest.raises(RooterRefused, match="may not ask"):
        await client.hello()
    for allowed in (RooterSection(user="nobody"), RooterSection(group="nogroup")):
        await rooter.reload(replace(NETWORK, rooter=replace(allowed, interfaces=("virbr0",))))
        again = RooterClient(tmp_path / "sock")
        await again.hello()
        await again.close()


@pytest.mark.parametrize(
    "line", [b"{}\n", b'{"do":"shell","command":"id"}\n', b"\xff\n", b"[" * 99 + b"\n"]
)
async def test_what_is_no_command_is_answered_and_done_by_nobody(
    rooter: Rooter, kernel: NotedKernel, tmp_path: Path, line: bytes
) -> None:
    kernel.log.clear()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
    writer.write(line)
    answer = decode_answer(await reader.readline())
    assert isinstance(answer, Refused)
    writer.write(b"x" * (1 << 20))  # a line without an end
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await writer.drain()
        await reader.readuntil()
    writer.close()
    assert kernel.log == []


async def test_a_bug_costs_one_command(
    client: RooterClient, kernel: NotedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "peers", lambda _: 1 / 0)
    with pytest.raises(RooterRefused, match="Internal error: ZeroDivisionError"):
        await client.peers("vpn0")
    await client.hello()


async def test_another_protocol_is_refused(rooter: Rooter, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
    writer.write(b'{"do":"hello","protocol":99}\n')
    assert decode_answer(await reader.readline()) == Refused("protocol 99: this rooter speaks 1")
    writer.close()


async def test_its_socket_is_for_those_only_who_may_ask(
    kernel: NotedKernel, tmp_path: Path
) -> None:
    path = tmp_path / "sock"
    path.write_text("what another rooter has left")
    own = pwd.getpwuid(os.geteuid()).pw_name
    made = Rooter(replace(NETWORK, rooter=RooterSection(user=own, interfaces=("virbr0",))), kernel)
    await made.open(path)
    assert path.stat().st_mode & 0o777 == 0o660
    await made.close()
    stranger = RooterSection(user="no-such-account", interfaces=("virbr0",))
    with pytest.raises(Exception, match="no account or group"):
        await Rooter(replace(NETWORK, rooter=stranger), kernel).open(path)


async def test_an_answer_that_does_not_come_is_no_rooter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_api.network.rooter.client.PATIENCE", 0.05)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_unix_server(mute, tmp_path / "sock"):
        client = RooterClient(tmp_path / "sock")
        with pytest.raises(RooterUnavailable):
            await client.hello()
        await client.close()
        await asyncio.wait_for(ended.wait(), 5)


def test_a_line_is_one_object() -> None:
    assert encode(Guard("virbr0", [])) == b'{"do":"guard","interface":"virbr0","services":[]}\n'


def test_tables_are_numbers_or_known_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tmp_path / "rt_tables"
    names.write_text("# comment\n400 office # ours\nbroken\n")
    monkeypatch.setattr("cuckoo_api.network.rooter.kernel.TABLE_NAMES", (names, tmp_path / "no"))
    found = [table_number(text, 3) for text in ("", "77", "main", "office")]
    assert found == [18003, 77, 254, 400]
    with pytest.raises(KernelRefused, match="write its number"):
        table_number("offices", 0)
