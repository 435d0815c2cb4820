"""The real tcpdump on the loopback interface: needs it installed, and the right to capture."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import dpkt
import pytest
from capturekit import Machine, children, module

from cuckoo_api.network import capture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump.pcap"


def packets(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return []
        return [bytes(packet) for _, packet in dpkt.pcap.Reader(file)]


def say(words: bytes, ip: str) -> None:
    """A datagram to ``ip``; whether somebody listens does not matter to a capture."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(words, (ip, 9))


@pytest.mark.parametrize(("interface", "ip"), [("nosuch0", "127.0.0.1"), ("lo", "not an address")])
async def test_what_tcpdump_says_is_passed_on(path: Path, interface: str, ip: str) -> None:
    async with capture(Machine(), path, interface, ip) as errors:
        assert len(errors) == 1
        assert errors[0].startswith("No capture of the network: tcpdump: ")
        assert not path.exists(), "no capture is no file"
        assert "tcpdump" not in children()


async def test_tcpdump_captures_where_the_hypervisor_cannot(path: Path) -> None:
    path.parent.chmod(0o700)  # nobody but us may enter the analysis folder
    async with capture(Machine(), path, "lo", "127.77.0.1") as errors:
        assert errors == []
        say(b"another guest", "127.77.0.2")
        say(b"hello from the guest", "127.77.0.1")
        async with asyncio.timeout(5):
            while not packets(path):
                await asyncio.sleep(0)
    assert {b"hello from the guest" in packet for packet in packets(path)} == {True}
    assert "tcpdump" not in children()


async def test_of_a_silent_guest_there_is_an_empty_capture(path: Path) -> None:
    async with capture(Machine(), path, "lo", "127.77.0.1") as errors:
        say(b"another guest", "127.77.0.2")
    assert (errors, packets(path)) == ([], [])


async def test_a_capture_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SIZE", 10_000)
    async with capture(Machine(), path, "lo", "127.77.0.1") as errors:
        assert errors == []
        async with asyncio.timeout(5):
            while "tcpdump" in children():
                say(b"x" * 1_000, "127.77.0.1")
                await asyncio.sleep(0)
    assert path.stat().st_size <= 10_000


async def test_tcpdump_runs_without_rights(path: Path) -> None:
    async with capture(Machine(), path, "lo", "127.0.0.1"):
        assert 0 not in children()["tcpdump"].uids()
