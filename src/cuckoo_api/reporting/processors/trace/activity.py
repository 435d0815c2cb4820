"""What the traced processes did, gathered under a fixed bound of memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cuckoo_api.reporting.bounds import Notes, clip

MAX_PROCESSES = 1000
MAX_THREADS = 10_000
MAX_CALLS = 50_000
MAX_CALLS_BYTES = 32 << 20
MAX_PROCESS_CALLS = 5_000
MAX_APIS = 400
MAX_SUMMARY = 2_000
MAX_GENERIC = 20_000
MAX_TIMELINE = 2_000
MAX_TEXT = 4_096
MAX_DEPTH = 64

PAIRS = frozenset({"file_copied", "file_moved"})
"""Categories of the summary whose entries are pairs, old and new."""

UNTIMED = frozenset(
    {
        "connects_ip", "directory_enumerated", "dll_loaded", "file_exists", "file_failed",
        "file_opened", "file_read", "regkey_opened", "regkey_read",
    }
)  # fmt: skip
"""Categories that are not on the timeline: what was only looked at, or stands there otherwise."""

Entry = str | tuple[str, str]


@dataclass(slots=True, eq=False)
class Process:
    """One process; its threads count as itself."""

    pid: int
    number: int
    """The order of appearance: a parent's is lower than its children's."""
    first_seen: float
    ppid: int = 0
    """0 for the first process, whose parent was not traced."""
    parent: Process | None = None
    name: str = ""
    path: str = ""
    command_line: str = ""
    cwd: str = ""
    unplaced: list[str] | None = None
    """The words of a command that ran before it was known in which folder."""
    autostart: dict[str, Any] | None = None
    """After a restart: what started it, and whether it is the sample's; None for all else."""
    ended: float | None = None
    """None while it runs."""
    exit_code: int | None = None
    """None while it runs; minus the signal's number for one that was killed."""
    room: int = MAX_PROCESS_CALLS
    """How many more of its calls are kept."""
    calls: list[msgspec.Raw] = field(default_factory=list)
    apis: dict[bytes, int] = field(default_factory=dict)
    summary: dict[str, dict[Entry, None]] = field(default_factory=dict)


class Activity:
    """All processes, their calls and the summary."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.processes: list[Process] = []
        self.summary: dict[str, dict[Entry, None]] = {}
        self.now = 0.0
        """The time of the call that is being looked at."""
        self._timeline: list[dict[str, Any]] = []
        self._threads: dict[int, Process] = {}
        self._orphans: dict[int, Process] = {}
        # one for all that come after the limit: what they do still counts in the summary
        self._others = Process(0, 0, 0.0, room=0)
        self.room = MAX_CALLS
        """How many more calls are kept."""
        self._call_bytes = 0
        self._generic = 0
        self._overflown = False
        self._told: set[str] = set()

    def process(self, tid: int, seen: bytes) -> Process:
        """The process that a thread belongs to; a new one when the thread is not known."""
        process = self._threads.get(tid)
        if process is None:
            process = self._create(tid, float(seen))
        return process

    def begin(self, pid: int, ppid: int, seen: float, parent: Process | None) -> Process | None:
        """A process that tells of itself; those begin in their order. None beyond the limit."""
        process = self._create(pid, seen)
        if process is self._others:
            return None
        process.ppid, process.parent = ppid, parent
        return process

    def forked(self, parent: Process, pid: int, seen: float) -> Process | None:
        """``parent`` made this process. Its own lines may have come earlier in the trace.

        None where no true trace could say so.
        """
        child = self._threads.get(pid) or self._orphans.pop(pid, None)
        if child is None:
            child = self._create(pid, seen)
        if child.parent is not None or child.number <= parent.number or not parent.number:
            return None  # without this a forged one could make a circle
        child.parent, child.ppid = parent, parent.pid
        if not child.command_line:
            child.name, child.path = parent.name, parent.path
            child.command_line = parent.command_line
        child.cwd = child.cwd or parent.cwd
        return child

    def thread(self, process: Process, tid: int) -> None:
        """``process`` made a thread."""
        known = self._threads.get(tid)
        if known is not None and known.parent is None and known.number > process.number > 0:
            self._absorb(process, known)
        if len(self._threads) < MAX_THREADS:
            self._threads[tid] = process

    def ended(self, tid: int, process: Process, code: int, seen: float) -> None:
        """A thread ended, and with its last one the process."""
        self._threads.pop(tid, None)
        if tid == process.pid and process.number:
            process.exit_code, process.ended = code, seen
            if process.parent is None:
                # the news that it was forked may be still to come
                self._orphans[tid] = process

    def add(self, process: Process, category: str, *values: str) -> None:
        """Put an entry into the summary of all and of one process."""
        first = clip(values[0], MAX_TEXT)
        entry: Entry = (first, clip(values[1], MAX_TEXT)) if category in PAIRS else first
        entries = self.summary.setdefault(category, {})
        if entry not in entries:
            if len(entries) >= MAX_SUMMARY:
                self._cut(f"behavior.summary.{category}", MAX_SUMMARY)
                return
            entries[entry] = None
            if category not in UNTIMED:
                self._happened(process, category, entry)
        own = process.summary.setdefault(category, {})
        if entry not in own and process is not self._others:
            if self._generic >= MAX_GENERIC:
                self._cut("behavior.generic", MAX_GENERIC)
                return
            self._generic += 1
            own[entry] = None

    def _happened(self, process: Process, category: str, entry: Entry) -> None:
        if len(self._timeline) >= MAX_TIMELINE:
            self._cut("behavior.timeline", MAX_TIMELINE)
            return
        self._timeline.append(
            {"time": self.now, "pid": process.pid, "category": category, "value": entry}
        )

    def _cut(self, what: str, limit: int) -> None:
        """Note it once: in a flood, the sentence alone would cost more than what is left out."""
        if what not in self._told:
            self._told.add(what)
            self.notes.cut(what, limit)

    def full(self, process: Process, category: str) -> bool:
        """Whether no entry of this category can be new any more."""
        if len(self.summary.get(category, ())) < MAX_SUMMARY:
            return False
        own = process.summary.get(category, ())
        return len(own) >= MAX_SUMMARY or self._generic >= MAX_GENERIC

    def knows(self, category: str, value: str) -> bool:
        """Whether the summary of all has this entry."""
        return value in self.summary.get(category, ())

    def keep_call(self, process: Process, call: dict[str, Any]) -> None:
        """Keep a call, encoded at once: a tenth of the memory."""
        data = msgspec.json.encode(call)
        self._call_bytes += len(data)
        process.room -= 1
        self.room -= 1
        if self._call_bytes >= MAX_CALLS_BYTES:
            self.room = 0
        process.calls.append(msgspec.Raw(data))

    def section(self) -> dict[str, Any]:
        """The report's ``behavior``."""
        made = sum(sum(process.apis.values()) for process in self.processes)
        kept = sum(len(process.calls) for process in self.processes)
        if self._overflown:
            self.notes.cut("behavior.processes", MAX_PROCESSES)
        if kept < made:
            self.notes.add(f"behavior.processes[].calls: {kept} of {made} calls are kept")
        return {
            "generic": [
                _head(process) | {"summary": _lists(process.summary)} for process in self.processes
            ],
            "processes": [_process(process) for process in self.processes],
            "processtree": self._tree(),
            "summary": _lists(self.summary),
            "apistats": {str(pid): apis for pid, apis in _apistats(self.processes) if apis},
            "timeline": sorted(self._timeline, key=lambda event: event["time"]),
        }

    def _create(self, pid: int, seen: float) -> Process:
        if len(self.processes) >= MAX_PROCESSES:
            self._overflown = True
            return self._others
        process = Process(pid, len(self.processes) + 1, seen)
        self.processes.append(process)
        self._threads[pid] = process
        return process

    def _absorb(self, process: Process, other: Process) -> None:
        """The lines of a thread came before the news that it is one."""
        self.processes.remove(other)
        for child in self.processes:
            if child.parent is other:
                child.parent, child.ppid = process, process.pid
        process.calls += other.calls
        for api, count in other.apis.items():
            process.apis[api] = process.apis.get(api, 0) + count
        for category, entries in other.summary.items():
            process.summary.setdefault(category, {}).update(entries)

    def _tree(self) -> list[dict[str, Any]]:
        roots: list[dict[str, Any]] = []
        nodes: dict[int, tuple[list[dict[str, Any]], int]] = {}
        for process in self.processes:
            node = _head(process) | {
                "ended": process.ended,
                "exit_code": process.exit_code,
                "track": True,
                "children": [],
            }
            if process.parent is None:
                siblings, depth = roots, 0
            else:
                siblings, depth = nodes[process.parent.number]
            siblings.append(node)
            if depth >= MAX_DEPTH:
                # a deeper one could not be read back by every JSON parser
                self.notes.cut("behavior.processtree, depth", MAX_DEPTH)
                nodes[process.number] = (siblings, depth)
            else:
                nodes[process.number] = (node["children"], depth + 1)
        return roots


def _head(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "ppid": process.ppid,
        "process_name": process.name,
        "process_path": process.path,
        "command_line": process.command_line,
        "first_seen": process.first_seen,
        "autostart": process.autostart,
    }


def _process(process: Process) -> dict[str, Any]:
    return _head(process) | {
        "type": "process",
        "ended": process.ended,
        "exit_code": process.exit_code,
        "calls": process.calls,
    }


def _apistats(processes: list[Process]) -> Iterator[tuple[int, dict[str, int]]]:
    """By pid; a pid that was given out twice has the counts of both."""
    counts: dict[int, dict[str, int]] = {}
    for process in processes:
        own = counts.setdefault(process.pid, {})
        for api, count in process.apis.items():
            name = api.decode("ascii")
            own[name] = own.get(name, 0) + count
    yield from counts.items()


def _lists(summary: dict[str, dict[Entry, None]]) -> dict[str, list[Entry]]:
    return {category: list(entries) for category, entries in summary.items()}
