"""Guests plugged into the rooter's bridges: who may, what is handed over, that nothing stays."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from cuckoo_api.machinery import BackendUnavailable
from cuckoo_api.network.rooter import server
from cuckoo_api.network.rooter.bridges import mac_of
from cuckoo_api.network.rooter.client import RooterClient
from cuckoo_api.network.rooter.commands import Done, Plug, Plugged, Refused, encode
from cuckoo_api.network.rooter.server import Rooter
from cuckoo_api.network.rooter.taps import RooterTap, RooterTaps
from cuckoo_api.settings import Network
from cuckoo_api.settings.routing import RooterSection, RoutingSection
from rooterkit import NotedKernel, happens

pytestmark = pytest.mark.slow

BRIDGE, GUEST, OTHER = "qemubr", "192.168.55.11", "192.168.55.12"
MAC, OTHER_MAC = "52:54:00:00:00:0b", "52:54:00:00:00:0c"
MADE = {BRIDGE: IPv4Interface("192.168.55.1/24")}
SECTION = RooterSection(
    interfaces=("virbr0", BRIDGE), bridges=tuple(f"{k}:{v}" for k, v in MADE.items())
)
NETWORK = Network(routing=RoutingSection(drop=True), rooter=SECTION)


@pytest.fixture
def kernel() -> NotedKernel:
    return NotedKernel()


@pytest.fixture
async def rooter(kernel: NotedKernel, tmp_path: Path) -> AsyncIterator[Rooter]:
    made = Rooter(NETWORK, kernel)
    await made.open(tmp_path / "sock")
    yield made
    await made.close()
    assert kernel.made == kernel.taps == {}


@pytest.fixture
def taps(rooter: Rooter, tmp_path: Path) -> RooterTaps:
    return RooterTaps(tmp_path / "sock", MADE)


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> object:
    """Both ends are in this process."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


async def pull(*taps: RooterTap) -> None:
    for tap in taps:
        os.close(tap.descriptor)
        await tap.unplug()


async def test_a_guest_is_plugged_in_until_it_is_unplugged(
    taps: RooterTaps, kernel: NotedKernel
) -> None:
    await taps.ready()
    assert kernel.made == MADE
    tap = await taps.plug(BRIDGE, GUEST, MAC)
    assert os.fstat(tap.descriptor).st_rdev == Path("/dev/null").stat().st_rdev
    assert not os.get_inheritable(tap.descriptor)
    [there] = kernel.taps.values()
    assert (there.name, there.bridge, there.guest, there.mac) == (tap.name, BRIDGE, GUEST, MAC)
    await pull(tap)
    assert kernel.taps == {}
    assert kernel.held == set()
    await tap.unplug()  # once more is nobody's matter


async def test_a_connection_s_end_takes_the_tap_and_the_route(
    taps: RooterTaps, kernel: NotedKernel, tmp_path: Path
) -> None:
    leads = RooterClient(tmp_path / "sock")
    await leads.enable(GUEST, BRIDGE, "drop")
    tap = await taps.plug(BRIDGE, GUEST, MAC)
    os.close(tap.descriptor)
    tap._connection.close()
    await happens(lambda: not kernel.taps)
    await happens(lambda: not kernel.open)
    await leads.disable(GUEST)
    await leads.close()


async def test_each_guest_is_one_client_s_and_has_an_address_of_its_own(
    taps: RooterTaps, kernel: NotedKernel
) -> None:
    one = await taps.plug(BRIDGE, GUEST, MAC)
    with pytest.raises(BackendUnavailable, match="has another client's tap"):
        await taps.plug(BRIDGE, GUEST, MAC)
    with pytest.raises(BackendUnavailable, match="is another guest's"):
        await taps.plug(BRIDGE, OTHER, MAC)
    two = await taps.plug(BRIDGE, OTHER, OTHER_MAC)
    assert set(kernel.taps) == kernel.held == {GUEST, OTHER}
    await pull(one)
    assert set(kernel.taps) == {OTHER}
    again = await taps.plug(BRIDGE, GUEST, MAC)
    assert again.name not in {one.name, two.name}
    await pull(again, two)


@pytest.mark.parametrize(
    ("bridge", "guest", "mac", "reason"),
    [
        ("virbr0", GUEST, MAC, "not among .rooter. bridges"),
        ("eth0", GUEST, MAC, "not among"),
        ('qemubr"; drop', GUEST, MAC, "not among"),
        (BRIDGE, "192.168.55.1", MAC, "no guest's address"),
        (BRIDGE, "192.168.55.0", MAC, "no guest's address"),
        (BRIDGE, "192.168.55.255", MAC, "no guest's address"),
        (BRIDGE, "192.168.56.11", MAC, "no guest's address"),
        (BRIDGE, "::1", MAC, "no IPv4 address"),
        (BRIDGE, GUEST, "52:54:00:00:00:0B", "no locally administered"),
        (BRIDGE, GUEST, "53:54:00:00:00:0b", "no locally administered"),  # a group's
        (BRIDGE, GUEST, "00:16:3e:00:00:0b", "no locally administered"),  # a vendor's
        (BRIDGE, GUEST, "52:54:00:00:00:0b accept", "no locally administered"),
        (BRIDGE, GUEST, mac_of(BRIDGE), "no locally administered"),
    ],
)
async def test_nobody_can_pass_for_the_host_or_be_elsewhere(
    taps: RooterTaps, kernel: NotedKernel, bridge: str, guest: str, mac: str, reason: str
) -> None:
    with pytest.raises(BackendUnavailable, match=reason):
        await taps.plug(bridge, guest, mac)
    assert kernel.taps == {}


@pytest.mark.parametrize("step", ["apply", "plug"])
async def test_what_the_kernel_refuses_leaves_nothing(
    taps: RooterTaps, kernel: NotedKernel, step: str
) -> None:
    kernel.refuses = {step}
    with pytest.raises(BackendUnavailable, match=r"nft: no|no tap ckr"):
        await taps.plug(BRIDGE, GUEST, MAC)
    assert kernel.taps == {}
    kernel.refuses.clear()
    await pull(await taps.plug(BRIDGE, GUEST, MAC))


async def test_taps_are_counted(taps: RooterTaps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_TAPS", 1)
    tap = await taps.plug(BRIDGE, GUEST, MAC)
    with pytest.raises(BackendUnavailable, match="there are 1 taps already"):
        await taps.plug(BRIDGE, OTHER, OTHER_MAC)
    await pull(tap)
    await pull(await taps.plug(BRIDGE, OTHER, OTHER_MAC))


async def test_a_client_replaces_its_own(
    taps: RooterTaps, kernel: NotedKernel, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(str(tmp_path / "sock"))
        own.setblocking(False)
        for number in (1, 2):
            own.send(encode(Plug(BRIDGE, GUEST, MAC)))
            await happens(lambda number=number: f"ckr{number}" in str(kernel.taps))  # type: ignore[misc]
        assert len(kernel.taps) == 1
    await happens(lambda: not kernel.taps)


async def test_a_client_that_does_not_take_its_tap_has_none(
    rooter: Rooter, taps: RooterTaps, kernel: NotedKernel, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.connect(str(tmp_path / "sock"))
        hasty.send(encode(Plug(BRIDGE, GUEST, MAC)))
    await happens(lambda: f"unplug {GUEST}" in kernel.log)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(tmp_path / "sock"))
        deaf.send(encode(Plug(BRIDGE, GUEST, MAC)) * 1000)
        await happens(lambda: bool(kernel.taps))
        await happens(lambda: not rooter._connections)  # it was hung up on
    await pull(await taps.plug(BRIDGE, GUEST, MAC))


async def test_what_a_client_brings_is_not_taken(
    taps: RooterTaps, kernel: NotedKernel, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as generous, Path("/dev/zero").open() as file:
        generous.connect(str(tmp_path / "sock"))
        socket.send_fds(generous, [encode(Plug(BRIDGE, GUEST, MAC))], [file.fileno()] * 20)
        await happens(lambda: bool(kernel.taps))
        zero = os.fstat(file.fileno()).st_rdev
        there = [int(name) for name in os.listdir("/proc/self/fd")]
        assert [fd for fd in there if _device(fd) == zero] == [file.fileno()]
    await happens(lambda: not kernel.taps)


def _device(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_rdev
    except OSError:
        return 0  # the one that listed the folder


async def test_a_reload_takes_the_taps_of_bridges_that_are_no_more(
    rooter: Rooter, taps: RooterTaps, kernel: NotedKernel
) -> None:
    tap = await taps.plug(BRIDGE, GUEST, MAC)
    more = replace(SECTION, bridges=(*SECTION.bridges, "more:10.9.0.1/16"))
    await rooter.reload(replace(NETWORK, rooter=more))
    assert set(kernel.taps) == {GUEST}
    assert set(kernel.made) == {BRIDGE, "more"}
    other = replace(SECTION, bridges=(f"{BRIDGE}:192.168.77.1/24",))
    await rooter.reload(replace(NETWORK, rooter=other))
    assert kernel.taps == {}
    assert kernel.made == {BRIDGE: IPv4Interface("192.168.77.1/24")}
    await pull(tap)


def answer_once(listener: socket.socket, line: bytes, descriptors: int) -> None:
    """Be a rooter that answers one client with this."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        if line:
            fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            connection.sendmsg([line], rights if fds else [])
            for one in fds:
                os.close(one)
            connection.recv(1000)


@pytest.mark.parametrize(
    ("line", "descriptors", "reason"),
    [
        (encode(Plugged("ckr1")), 0, "it brought no tap"),
        (encode(Plugged("ckr1")), 2, "it brought no tap"),
        (encode(Refused("no, thanks")), 1, "no, thanks"),
        (encode(Done()), 1, "it brought no tap"),
        (b"no line\n", 1, "JSON is malformed"),
        (b"{", 1, "it does not answer"),
        (b"", 0, "it has hung up"),
    ],
)
async def test_no_rooter_leaves_a_descriptor_with_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, descriptors: int, reason: str
) -> None:
    monkeypatch.setattr("cuckoo_api.network.rooter.taps.PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        answered = asyncio.create_task(asyncio.to_thread(answer_once, listener, line, descriptors))
        with pytest.raises(BackendUnavailable, match=reason):
            await RooterTaps(tmp_path / "sock", MADE).plug(BRIDGE, GUEST, MAC)
        await answered


async def test_without_a_rooter_it_is_said_what_to_do(tmp_path: Path) -> None:
    taps = RooterTaps(tmp_path / "sock", MADE)
    for ask in (taps.ready(), taps.plug(BRIDGE, GUEST, MAC)):
        with pytest.raises(
            BackendUnavailable, match=r"No such file.*systemctl start cuckoo-rooter"
        ):
            await ask
