"""``behavior``: what the sample did, from the trace of strace or from the logs of a monitor."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

import msgspec

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.evidence import Evidence, Input
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors.trace.activity import MAX_APIS, Activity, Process
from cuckoo_api.reporting.processors.trace.autostart import mark_autostarts, restart_of
from cuckoo_api.reporting.processors.trace.calls import MOVING, SENDING, Call, Interpreter
from cuckoo_api.reporting.processors.trace.syntax import (
    CATEGORIES,
    EXITED,
    KILLED,
    LINE,
    RESUMED,
    SIGNAL,
    SUPERSEDED,
    UNFINISHED,
    arguments,
)

TRACE = "logs/trace.strace"
MAX_LINE = 64 << 10
MAX_UNFINISHED = 4_096
MAX_KNOWN = 50_000
MAX_LOGS = 500
MAX_ARGUMENTS = 5_000
MAX_REMEMBERED = 1_024

_LOG = re.compile(r"[0-9]{1,10}\.bson", re.ASCII)


def run(evidence: Evidence, job: Job, notes: Notes) -> dict[str, Any]:
    """The report's ``behavior``; empty with a note when the guest sent nothing to make it of."""
    activity = Activity(notes)
    logs = [name for name in evidence.names("logs") if _LOG.fullmatch(name)]
    if logs:
        # only here: a guest that is no Windows need not wait for its library
        from cuckoo_api.reporting.processors.monitor.logs import read_logs

        kept = take(logs, MAX_LOGS, notes, "logs")
        read_logs(evidence, [f"logs/{name}" for name in kept], activity, notes)
    try:
        with evidence.open(TRACE) as source:
            read_trace(source, activity, notes)
    except FileNotFoundError:
        if not logs:
            notes.add("behavior: the guest sent no trace")
    if restart := restart_of(evidence):
        mark_autostarts(activity, restart.restored)
    return activity.section()


def read_trace(source: Input, activity: Activity, notes: Notes) -> None:
    """Read a trace from its beginning to its end or to the limit, in constant memory."""
    reader = TraceReader(activity, notes)
    for block in blocks(source, notes):
        reader.feed(block)
    if source.truncated:
        notes.add(f"{TRACE}: only a part of its {source.size} bytes was read")
    reader.finish()


def blocks(source: Input, notes: Notes) -> Iterator[bytes]:
    """Whole lines, many at a time. A line longer than any real one is dropped."""
    rest = b""
    dropping = False
    for chunk in source.chunks():
        if dropping:
            newline = chunk.find(b"\n")
            if newline < 0:
                continue
            chunk = chunk[newline + 1 :]
            dropping = False
        end = chunk.rfind(b"\n") + 1
        if end:
            yield rest + chunk[:end]
            rest = b""
        rest += chunk[end:]
        if len(rest) > MAX_LINE:
            notes.add(f"{TRACE}: a line over {MAX_LINE} bytes was dropped")
            rest, dropping = b"", True
    if rest:
        yield rest


class TraceReader:
    """Takes blocks of whole lines."""

    def __init__(self, activity: Activity, notes: Notes) -> None:
        self._notes = notes
        self._activity = activity
        self._handlers = Interpreter(self._activity).handlers
        self._known: dict[int, tuple[Process, bytes]] = {}
        """Whose lines they were, and of which call: such a line again is counted and no more."""
        self._unfinished: dict[int, bytes] = {}
        self._garbled = 0
        self._arguments: dict[tuple[bytes, bytes], msgspec.Raw] = {}
        """As JSON, by call and text: programs that start open the same files, one by one."""

    def feed(self, block: bytes) -> None:
        """Take whole lines."""
        for line in block.split(b"\n"):
            words = line.split(None, 2)
            if not words:
                continue
            # but for its time: in a flood, most lines say what was said before
            key = hash((words[0], words[-1]))
            known = self._known.get(key)
            if known is not None and not (known[0].room and self._activity.room):
                known[0].apis[known[1]] += 1
                continue
            match = LINE.match(line)
            try:
                if match is None or match[3] is None:
                    self._odd_line(match)
                else:
                    self._completed(match, key)
            except (ValueError, OverflowError):
                self._garbled += 1

    def finish(self) -> None:
        """Say how much was not understood, after the last block."""
        if self._garbled:
            self._notes.add(f"{TRACE}: {self._garbled} lines were not understood")

    def _completed(self, match: re.Match[bytes], key: int | None = None) -> None:
        pid, seen, api, text, result, path, *_ = match.groups()
        tid = int(pid)
        process = self._activity.process(tid, seen)
        apis = process.apis
        if api in apis or len(apis) < MAX_APIS:
            apis[api] = apis.get(api, 0) + 1
        handler = self._handlers.get(api)
        if handler is not None:
            self._activity.now = float(seen)
            failed = result[:1] in (b"-", b"?")
            handler(Call(process, self._activity.now, text, result, failed, path))
        if process.room and self._activity.room:
            self._activity.keep_call(process, self._call(tid, match))
        if api in MOVING or len(self._known) >= MAX_KNOWN:
            self._known.clear()
        elif key is not None and api in apis and api not in SENDING:
            self._known[key] = (process, api)

    def _call(self, tid: int, match: re.Match[bytes]) -> dict[str, Any]:
        """A call as the report shows it."""
        _, seen, name, text, result, _, error, _ = match.groups()
        api = name.decode("ascii")
        shown = self._arguments.get((name, text))
        if shown is None:
            shown = msgspec.Raw(msgspec.json.encode(arguments(api, text)))
            if len(self._arguments) >= MAX_ARGUMENTS:
                self._arguments.clear()
            if len(text) <= MAX_REMEMBERED:
                self._arguments[name, text] = shown
        call: dict[str, Any] = {
            "category": CATEGORIES.get(api, "misc"),
            "api": api,
            "status": 0 if result.startswith(b"-") else 1,
            "return_value": None if result == b"?" else int(result, 16 if b"x" in result else 10),
            "arguments": shown,
            "time": float(seen),
            "tid": tid,
        }
        if error is not None:
            call["errno"] = error.decode("ascii")
        return call

    def _odd_line(self, match: re.Match[bytes] | None) -> None:
        """A line that is no completed call: half of one, an end, a signal."""
        if match is None:
            raise ValueError("not a line of strace")
        tid, seen, text = int(match[1]), match[2], match[8]
        if part := UNFINISHED.match(text):
            if len(self._unfinished) < MAX_UNFINISHED:
                self._unfinished[tid] = b"%s %s %s(%s" % (match[1], seen, part[1], part[2])
            self._activity.process(tid, seen)
        elif part := RESUMED.match(text):
            whole = LINE.fullmatch(self._unfinished.pop(tid, b"") + part[2])
            if whole is not None and whole[3] == part[1]:
                self._completed(whole)
        elif part := EXITED.match(text):
            self._ended(tid, seen, int(part[1]))
        elif part := KILLED.match(text):
            self._ended(tid, seen, -_signal_number(part[1]))
        elif part := SUPERSEDED.match(text):
            # a thread replaced its process; the rest of the call comes under the process's id
            started = self._unfinished.pop(int(part[1]), None)
            if started is not None:
                self._unfinished[tid] = started
        elif not SIGNAL.match(text):
            raise ValueError("not a line of strace")

    def _ended(self, tid: int, seen: bytes, code: int) -> None:
        self._unfinished.pop(tid, None)
        self._known.clear()  # the number may be another's next
        self._activity.ended(tid, self._activity.process(tid, seen), code, float(seen))


def _signal_number(name: bytes) -> int:
    try:
        return signal.Signals[name.decode("ascii")].value
    except KeyError:
        return 0
