"""How fast a trace and a capture of a GiB are read for a report, and in how much memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import dpkt

from .figure import Figure

SIZE = 1 << 30
SMALL = 128 << 20
SPEED = 20
"""MB a second."""
GROWTH = 1.1
"""How much more memory the GiB may take than what is said below it."""

READER = """
import importlib, json, re, sys, time
from pathlib import Path
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
step, folder = sys.argv[1:]
module = importlib.import_module(f"cuckoo_api.reporting.processors.{step}")
begin = time.process_time()
module.run(Evidence(Path(folder), 2 << 30), Job(category="file", target="x", info={}), Notes())
seconds = time.process_time() - begin
peak = re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())
print(json.dumps([seconds, int(peak[1]) / 1024]))
"""


def measure(folder: Path) -> list[Figure]:
    """Each in a process of its own, as in the report's worker."""
    figures: list[Figure] = []
    for step, name, write in (
        ("behavior", "logs/trace.strace", write_trace),
        ("network", "dump.pcap", write_capture),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _, small = _read(step, folder, name, write, SMALL)
        seconds, large = _read(step, folder, name, write, SIZE)
        figures += [
            Figure(
                name=f"{step}: reads 1 GiB of {name}",
                pairs=[(SIZE / seconds / 1e6, SPEED)],
                yardstick="wanted",
                unit="MB/s of processor time",
                at_least=1.0,
            ),
            Figure(
                name=f"{step}: memory for 1 GiB",
                pairs=[(large, small)],
                yardstick=f"for {SMALL >> 20} MiB",
                unit="MiB",
                at_most=GROWTH,
            ),
        ]
    return figures


def _read(
    step: str, folder: Path, name: str, write: Callable[[BinaryIO, int], None], size: int
) -> tuple[float, float]:
    with (folder / name).open("wb") as file:
        write(file, size)
    command = [sys.executable, "-I", "-c", READER, step, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout)
    (folder / name).unlink()
    return float(seconds), float(peak)


def write_trace(file: BinaryIO, size: int) -> None:
    """Seven processes that look at the same 3000 files again and again, and at new ones too."""
    numbers = itertools.count()
    written = 0
    while written < size:
        lines = []
        for number in itertools.islice(numbers, 2_000):
            head = f"{100 + number % 7} 17000{number // 1_000_000:05}.{number % 1_000_000:06}"
            path = f"/usr/lib/file{number % 3000}.so"
            lines.append(f'{head} openat(AT_FDCWD</>, "{path}", O_RDONLY|O_CLOEXEC) = 3<{path}>\n')
            if number % 5 == 0:
                lines.append(f'{head} unlink("/tmp/x{number}") = 0\n')
        written += file.write("".join(lines).encode())


def write_capture(file: BinaryIO, size: int) -> None:
    """Downloads of 64 KiB, each over a connection of its own, in segments as of a real network."""
    writer = dpkt.pcap.Writer(file)
    number = 0
    while file.tell() < size:
        for data in _download(1024 + number % 60_000):
            writer.writepkt(data, ts=1_700_000_000 + number)
        number += 1


def _download(port: int) -> Iterator[bytes]:
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + bytes(65_536)
    ask = b"GET /x HTTP/1.1\r\nHost: large.example\r\n\r\n"
    yield _packet(port, 80, 0, b"", dpkt.tcp.TH_SYN)
    yield _packet(80, port, 0, b"", dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK)
    yield _packet(port, 80, 1, ask, dpkt.tcp.TH_ACK)
    for at in range(0, len(body), 1400):
        yield _packet(80, port, 1 + at, body[at : at + 1400], dpkt.tcp.TH_ACK)


def _packet(sport: int, dport: int, sequence: int, data: bytes, flags: int) -> bytes:
    ends = (b"\xc0\xa8\x37\x0a", b"\xcb\x00\x71\x05")
    source, target = ends if dport == 80 else ends[::-1]
    segment = dpkt.tcp.TCP(sport=sport, dport=dport, seq=sequence, flags=flags, data=data)
    packet = dpkt.ip.IP(src=source, dst=target, p=dpkt.ip.IP_PROTO_TCP, data=segment)
    packet.len, packet.sum, segment.sum = len(packet), 1, 1  # as they are: nobody checks them
    return bytes(dpkt.ethernet.Ethernet(data=packet))
