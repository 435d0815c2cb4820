"""Sends what processes have in memory, each as a core file that debuggers and scanners read."""

import os
import re
import struct
import threading
from typing import Dict, Iterator, List, Tuple

from results import CHUNK, Log, ResultServer

MAX_DUMPS = 100
MAX_OF_PROGRAM = 8
MAX_DUMP = 64 * 1024 * 1024
MAX_TOTAL = 256 * 1024 * 1024
MAX_REGIONS = 4000
PAGE = 4096
MACHINES = {"x86_64": 62, "aarch64": 183}
HEAD, ENTRY = 64, 56
LOAD, NOTE, NT_FILE = 1, 4, 0x46494C45

_LINE = re.compile(rb"(?m)^([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) \S+ \d+ *(.*)$")
_LIBRARY = re.compile(rb"\.so(?:\.[0-9.]+)?$|/locale/|/gconv/|\.cache$")
_FIELD = re.compile(rb"(?m)^(Tgid|PPid|TracerPid):\t(\d+)$")


class Region:
    """A range of addresses, and how much of it goes into the dump."""

    def __init__(self, start: int, end: int, rights: bytes, offset: int, path: bytes) -> None:
        self.start = start
        self.size = end - start
        self.rights = rights
        self.offset = offset
        self.path = path
        self.kept = 0

    @property
    def is_worth_it(self) -> bool:
        """Whether it may be read, and holds more than a file does that lies on the disk."""
        if b"r" not in self.rights or self.path.startswith((b"[v", b"/dev/", b"anon_inode:")):
            return False
        return b"w" in self.rights or not _LIBRARY.search(self.path)


class ProcessMemory:
    """Dumps of processes, as ``memory/<pid>-<number>.dmp``, within limits for the whole."""

    def __init__(self, server: ResultServer, log: Log) -> None:
        self.tracer = 0
        """Only what this process traces is the sample's."""
        self._server = server
        self._log = log
        self._lock = threading.Lock()
        self._numbers: Dict[int, int] = {}
        self._programs: Dict[str, int] = {}
        self._left = MAX_TOTAL
        self._passed = 0

    def dump(self, thread: int) -> None:
        """Send the memory of the process that a thread belongs to. What fails is logged."""
        with self._lock:
            try:
                pid, parent, tracer = _whose(thread)
                if not self.tracer or tracer != self.tracer:
                    return
                if parent == tracer and _program(pid) == _program(tracer):
                    return  # with these it tries out what the kernel can do
                self._dump(pid)
            except Exception as error:  # whatever it was, the process has to go on
                self._log.warning("No memory of process %d: %s" % (thread, error))

    def finish(self) -> None:
        """Say how much there was."""
        count = sum(self._numbers.values())
        self._log.info("Sent the memory of %d processes." % count)
        if self._passed:
            self._log.warning("The memory of %d more is left out." % self._passed)

    def _dump(self, pid: int) -> None:
        program = _program(pid)
        count = self._programs.get(program, 0)
        if count >= MAX_OF_PROGRAM or sum(self._numbers.values()) >= MAX_DUMPS or self._left <= 0:
            self._passed += 1
            return
        regions = _regions(pid, min(MAX_DUMP, self._left))
        number = self._numbers.get(pid, 0) + 1
        with open("/proc/%d/mem" % pid, "rb", buffering=0) as memory:
            destination = "memory/%d-%d.dmp" % (pid, number)
            pieces = core(memory.fileno(), regions)
            self._left -= self._server.send(destination, program, str(pid), pieces)
        self._numbers[pid] = number
        self._programs[program] = count + 1


def core(memory: int, regions: List[Region]) -> Iterator[bytes]:
    """A core file, piece by piece, of the memory behind a descriptor."""
    notes = _files([region for region in regions if region.path.startswith(b"/")])
    at = HEAD + ENTRY * (len(regions) + 1)
    head = [struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, _machine(), 1, 0, HEAD, 0, 0,
                        HEAD, ENTRY, len(regions) + 1, 0, 0, 0),
            struct.pack("<IIQQQQQQ", NOTE, 4, at, 0, 0, len(notes), 0, 4)]
    at += len(notes)
    gap = -at % PAGE
    at += gap
    for region in regions:
        flags = sum(flag for flag, letter in ((4, b"r"), (2, b"w"), (1, b"x"))
                    if letter in region.rights)
        head.append(struct.pack("<IIQQQQQQ", LOAD, flags, at, region.start, 0, region.kept,
                                region.size, PAGE))
        at += region.kept
    yield b"".join(head) + notes + bytes(gap)
    for region in regions:
        for offset in range(0, region.kept, CHUNK):
            size = min(CHUNK, region.kept - offset)
            yield _read(memory, region.start + offset, size)


def _read(memory: int, at: int, size: int) -> bytes:
    """So many bytes; zeros stand for pages that cannot be read."""
    found = b""
    while len(found) < size:
        try:
            data = os.pread(memory, size - len(found), at + len(found))
        except (OSError, OverflowError):
            data = b""
        found += data or bytes(min(PAGE, size - len(found)))
    return found


def _regions(pid: int, room: int) -> List[Region]:
    """What is mapped. The smaller a region, the sooner it gets its share of the room."""
    with open("/proc/%d/maps" % pid, "rb") as file:
        text = file.read()
    regions = [
        Region(int(start, 16), int(end, 16), rights, int(offset, 16), path)
        for start, end, rights, offset, path in _LINE.findall(text)[:MAX_REGIONS]
    ]
    for region in sorted(regions, key=lambda region: region.size):
        if region.is_worth_it:
            region.kept = min(region.size, room)
            room -= region.kept
    return regions


def _files(regions: List[Region]) -> bytes:
    """The note that says which files were mapped where."""
    body = struct.pack("<QQ", len(regions), PAGE)
    for region in regions:
        end = region.start + region.size
        body += struct.pack("<QQQ", region.start, end, region.offset // PAGE)
    body += b"".join(region.path + b"\0" for region in regions)
    body += bytes(-len(body) % 4)
    return struct.pack("<III", 5, len(body), NT_FILE) + b"CORE\0\0\0\0" + body


def _machine() -> int:
    return MACHINES.get(os.uname().machine, 0)


def _program(pid: int) -> str:
    return os.readlink("/proc/%d/exe" % pid)


def _whose(thread: int) -> Tuple[int, int, int]:
    """The process that a thread belongs to, its parent, and who traces it.

    Raises OSError or ValueError.
    """
    with open("/proc/%d/status" % thread, "rb") as file:
        fields = {name: int(value) for name, value in _FIELD.findall(file.read())}
    if len(fields) != 3:
        raise ValueError("its status is not readable")
    return fields[b"Tgid"], fields[b"PPid"], fields[b"TracerPid"]
