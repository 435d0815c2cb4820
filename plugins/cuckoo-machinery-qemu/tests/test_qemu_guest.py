"""Pictures, memory, packets, console and the reset button of real guests."""

from __future__ import annotations

import hashlib
import secrets
import socket
import struct
from pathlib import Path

import dpkt
import pytest
from PIL import Image
from qemukit import (
    ADDRESSES,
    GATEWAY,
    RESULTS,
    SNAPSHOT,
    Host,
    Lab,
    agent_of,
    digests,
    inside,
    python_inside,
    reached,
    started,
)

from conftest import Make
from cuckoo_api.machinery import SnapshotNotFound
from cuckoo_machinery_qemu.backend import QemuBackend

BOOT_TIMEOUT = 60
KINDS = {dpkt.ethernet.ETH_TYPE_IP, dpkt.ethernet.ETH_TYPE_ARP, dpkt.ethernet.ETH_TYPE_IP6}
"""What a guest sends. Also what goes no further: that it looks for an IPv6 router."""

POUR = f"""
import hashlib
block = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(given))
with socket.create_connection(("{GATEWAY}", {RESULTS.port}), 20) as talk:
    talk.sendall(block)
    talk.shutdown(socket.SHUT_WR)
    talk.recv(100)
"""


def tcp_packets(path: Path) -> list[tuple[dpkt.ip.IP, dpkt.tcp.TCP]]:
    """The packets of a capture, each of which must be whole."""
    packets = []
    with path.open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        assert reader.datalink() == dpkt.pcap.DLT_EN10MB
        for _, frame in reader:
            assert len(frame) <= 1514, "no wire carries such a frame"
            ethernet = dpkt.ethernet.Ethernet(frame)
            assert ethernet.type in KINDS
            if isinstance(ethernet.data, dpkt.ip.IP):
                assert ethernet.data.len <= len(frame) - 14
                if isinstance(ethernet.data.data, dpkt.tcp.TCP):
                    packets.append((ethernet.data, ethernet.data.data))
    return packets


async def test_the_capture_holds_the_guest_s_packets_whole(
    lab: Lab, backend: QemuBackend, host: Host, tmp_path: Path
) -> None:
    await host.serve(backend, RESULTS)
    async with started(backend) as agent:
        await backend.start_capture("one", tmp_path / "capture")
        await python_inside(agent, POUR, 4000)
        await backend.stop_capture("one")
    sent = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(4000))
    assert host.heard["results"] == sent
    packets = tcp_packets(tmp_path / "capture")
    ends = {ip.src for ip, _ in packets} | {ip.dst for ip, _ in packets}
    assert ends == {socket.inet_aton(ip) for ip in (ADDRESSES["one"], GATEWAY)}
    # the agent's own talk is in it, and the upload can be put together again
    agent_s = b"".join(bytes(t.data) for _, t in packets if t.dport == 8000)
    assert agent_s.startswith(b"POST /execute HTTP/1.1")
    outward = [t for _, t in packets if t.dport == RESULTS.port]
    [first] = [t.seq for t in outward if t.flags & dpkt.tcp.TH_SYN]
    whole = bytearray(len(sent))
    for piece in outward:
        at = (piece.seq - first - 1) % (1 << 32)
        if piece.data:
            whole[at : at + len(piece.data)] = piece.data
    assert bytes(whole) == sent


async def test_a_capture_outlives_the_machine_that_it_was_made_of(
    backend: QemuBackend, tmp_path: Path
) -> None:
    async with started(backend) as agent:
        await backend.start_capture("one", tmp_path / "capture")
        await inside(agent, "true")
        await backend.power_off("one")
        await backend.stop_capture("one")
    assert tcp_packets(tmp_path / "capture")


async def test_the_screen_is_a_picture_of_what_the_guest_shows(
    backend: QemuBackend, tmp_path: Path
) -> None:
    async with started(backend) as agent:
        await backend.screenshot("one", tmp_path / "before")
        await inside(agent, "for i in 1 2 3; do echo '################' > /dev/tty1; done")
        await backend.pause("one")  # of a paused machine too
        await backend.screenshot("one", tmp_path / "after")
    before, after = (Image.open(tmp_path / name).convert("L") for name in ("before", "after"))
    assert before.size == after.size
    assert before.width >= 640
    assert before.height >= 400
    bright = [sum(value * n for value, n in enumerate(i.histogram())) for i in (before, after)]
    assert bright[1] > bright[0] > 0


async def test_the_memory_dump_is_a_core_with_the_guest_s_memory(
    lab: Lab, backend: QemuBackend, tmp_path: Path
) -> None:
    word = secrets.token_hex(16)
    async with started(backend) as agent:
        # put together in the guest: it did not come there in one piece
        await inside(agent, f"printf %s%s {word[:16]} {word[16:]} > /root/known")
        await backend.dump_memory("one", tmp_path / "memory")
        assert await inside(agent, "echo on") == "on\n"
    content = (tmp_path / "memory").read_bytes()
    assert content[:6] == b"\x7fELF\x02\x01"
    assert struct.unpack_from("<H", content, 16) == (4,), "no core file"
    assert len(content) >= lab.image.memory << 20
    assert word.encode() in content


async def test_the_console_is_what_the_guest_wrote_there(backend: QemuBackend) -> None:
    async with started(backend) as agent:
        # the line is sent when the port is closed
        await inside(agent, "echo the guest was here > /dev/ttyS0")
        assert b"the guest was here" in await backend.console("one")
        await inside(agent, "head -c 200000 /dev/zero | tr '\\0' x > /dev/ttyS0")
        assert len(await backend.console("one")) <= 64 << 10


async def test_a_reset_keeps_the_disk_and_brings_the_agent_back(
    backend: QemuBackend, host: Host
) -> None:
    await host.serve(backend, RESULTS)
    async with started(backend) as agent:
        await inside(agent, "echo disk > /root/mark; echo memory > /dev/shm/mark; sync")
        await agent.mark("before the reset")
        await backend.reboot("one")
        await agent.wait_restarted(BOOT_TIMEOUT, "before the reset")
        assert await inside(agent, "cat /root/mark") == "disk\n"
        assert await inside(agent, "ls /dev/shm") == ""
        # and the network is as before
        target = ("tcp", GATEWAY, RESULTS.port)
        assert set((await reached(agent, target)).values()) == {"results"}


# -- snapshots ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lab", ["user"], indirect=True)
async def test_a_snapshot_of_a_restored_machine_holds_all_and_stands_alone(
    lab: Lab, backend: QemuBackend
) -> None:
    before = digests(lab.snapshots)
    for round_ in ("first", "second"):  # the second is started from what it replaces
        base = SNAPSHOT if round_ == "first" else "later"
        await backend.restore_and_start("one", base)
        async with agent_of(backend) as agent:
            await inside(agent, f"echo {round_} >> /root/marks; sync")
        await backend.take_snapshot("one", "later")
    await backend.restore_and_start("one", "later")
    async with agent_of(backend) as agent:
        # past the cache, from the disk
        await inside(agent, "echo 3 > /proc/sys/vm/drop_caches")
        assert await inside(agent, "cat /root/marks") == "first\nsecond\n"
        assert await inside(agent, "md5sum /bin/bash | cut -c1-4 | wc -l") == "1\n"
    assert digests(lab.snapshots) == before


@pytest.mark.parametrize("lab", ["user"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "what"),
    [({"machine": {"memory": "192"}}, "hardware"), ({"accel": "kvm"}, "accelerator")],
)
async def test_a_snapshot_of_another_machine_is_refused(
    make: Make, changes: dict[str, object], what: str
) -> None:
    backend = await make(**changes)
    with pytest.raises(SnapshotNotFound, match=f"'clean' was taken with another {what} "):
        await backend.restore_and_start("one", SNAPSHOT)
    assert await backend.state("one") == "poweroff"
