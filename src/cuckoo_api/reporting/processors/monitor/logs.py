"""The monitor's logs, one for each process, read into the activity of them all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cuckoo_api.reporting.bounds import Notes, clip
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.processors.monitor.calls import WindowsInterpreter
from cuckoo_api.reporting.processors.monitor.messages import (
    MAX_EXPLAINED,
    Explained,
    arguments,
    documents,
    explained,
    flags,
    plain,
)
from cuckoo_api.reporting.processors.trace.activity import MAX_APIS, MAX_TEXT, Activity, Process

MAX_HEAD = 64
"""Messages in which a process says who it is; its first call is one of them."""
MAX_SAID = 500
_EPOCH = 11_644_473_600
"""Seconds from 1601, where Windows' times begin, to 1970."""
_THIS_PROCESS = ("0xffffffff", "0xffffffffffffffff", -1)
_NO_CALLS = frozenset({"__process__", "__thread__", "__environ__"})


class Start(msgspec.Struct, frozen=True):
    """What a process says of itself in its log."""

    log: str
    pid: int
    ppid: int = 0
    seen: float = 0.0
    path: str = ""
    command_line: str = ""
    wide: bool = False
    """Whether it is a process of 64 bits."""


def read_logs(evidence: Evidence, names: Iterable[str], activity: Activity, notes: Notes) -> None:
    """Read the logs in the order in which their processes began, in constant memory."""
    starts = [_start(evidence, name, notes) for name in names]
    known: dict[int, Process] = {}
    for start in sorted(starts, key=lambda item: (item.seen, item.pid)):
        process = activity.begin(start.pid, start.ppid, start.seen, known.get(start.ppid))
        if process is None:
            continue
        known[start.pid] = process
        process.path = clip(start.path, MAX_TEXT)
        process.name = process.path.replace("/", "\\").rpartition("\\")[2]
        process.command_line = clip(start.command_line or start.path, MAX_TEXT)
        with evidence.open(start.log) as source:
            reader = LogReader(activity, process, start, notes)
            for document in documents(source, notes, start.log):
                reader.take(document)
        reader.finish()


def _start(evidence: Evidence, name: str, notes: Notes) -> Start:
    """Look for the message about the process itself, which is among the first."""
    pid = name.rpartition("/")[2].partition(".")[0]
    nothing = Start(log=name, pid=int(pid) if pid.isdigit() else 0)
    calls: dict[int, Explained] = {}
    with evidence.open(name) as source:
        # its faults are noted when the log is read
        for document in itertools.islice(documents(source, Notes(), name), MAX_HEAD):
            if document.get("type") == "info":
                calls[_int(document.get("I"))] = explained(document)
                continue
            call = calls.get(_int(document.get("I")))
            if call is not None and call.name == "__process__":
                given = _given(call, document, wide=False)
                return nothing if given is None else _described(nothing, given)
    notes.add(f"{name}: the log does not say what process it is of")
    return nothing


def _described(nothing: Start, given: Mapping[str, Any]) -> Start:
    """In the words of Cuckoo 2's monitor or in those of the first one and of CAPE's."""

    def number(*names: str) -> int:
        return next((_int(given[name]) for name in names if name in given), 0)

    low, high = number("time_low", "TimeLow"), number("time_high", "TimeHigh")
    seen = ((low % (1 << 32)) | (high % (1 << 32)) << 32) / 10_000_000 - _EPOCH
    return Start(
        log=nothing.log,
        # the file's name is the server's word, the message that of the guest
        pid=nothing.pid or number("pid", "process_identifier", "ProcessIdentifier"),
        ppid=number("ppid", "parent_process_identifier", "ParentProcessIdentifier"),
        seen=max(seen, 0.0),
        path=str(given.get("module_path") or given.get("ModulePath") or ""),
        command_line=str(given.get("command_line") or given.get("CommandLine") or ""),
        wide=bool(given.get("is_64bit")),
    )


class LogReader:
    """Takes one log's messages in their order."""

    def __init__(self, activity: Activity, process: Process, start: Start, notes: Notes) -> None:
        self._activity = activity
        self._process = process
        self._start = start
        self._notes = notes
        self._interpreter = WindowsInterpreter(activity, process)
        self._explained: dict[int, Explained] = {}
        self._odd = 0

    def take(self, document: Mapping[str, Any]) -> None:
        """Take a message of any shape."""
        kind = document.get("type")
        number = _int(document.get("I"))
        if kind == "info":
            if len(self._explained) < MAX_EXPLAINED:
                self._explained[number] = explained(document)
        elif kind == "debug":
            said = clip(str(document.get("msg", "")), MAX_SAID)
            self._notes.add(f"{self._start.log}: the monitor says: {said}")
        elif kind not in ("buffer", "new_process"):
            call = self._explained.get(number)
            given = None if call is None else _given(call, document, wide=self._start.wide)
            if call is None or given is None:
                self._odd += 1
            elif call.name not in _NO_CALLS:
                self._called(call, given, document)

    def finish(self) -> None:
        """Say what was odd about the log."""
        if self._odd:
            self._notes.add(
                f"{self._start.log}: {self._odd} calls do not fit what was said about them"
            )

    def _called(self, call: Explained, given: dict[str, Any], document: Mapping[str, Any]) -> None:
        activity, process = self._activity, self._process
        succeeded = bool(given.pop("is_success", 1))
        result = given.pop("retval", 0)
        name = call.name.encode("ascii", "backslashreplace")
        if name in process.apis or len(process.apis) < MAX_APIS:
            process.apis[name] = process.apis.get(name, 0) + 1
        activity.now = self._start.seen + max(0, _int(document.get("t"))) / 1000
        named = flags(call, given)
        self._interpreter.take(call.name, given, named, succeeded=succeeded)
        if call.name == "NtTerminateProcess" and _ends_itself(given, process.pid):
            process.ended = activity.now
            process.exit_code = _int(given.get("status_code", given.get("ExitCode")))
        if process.room and activity.room:
            aux = document.get("aux")  # CAPE's monitor says more of some calls
            given |= plain(aux) if isinstance(aux, dict) else {}
            entry: dict[str, Any] = {
                "category": call.category,
                "api": call.name,
                "status": int(succeeded),
                "return_value": result,
                "arguments": given,
                "flags": named,
                "time": activity.now,
                "tid": _int(document.get("T")),
            }
            if document.get("s"):
                entry["stacktrace"] = plain(document["s"])
            if "e" in document and "E" in document:
                entry["last_error"] = plain(document["e"])
                entry["nt_status"] = plain(document["E"])
            activity.keep_call(process, entry)


def _given(call: Explained, document: Mapping[str, Any], *, wide: bool) -> dict[str, Any] | None:
    """The arguments of a message; None when they are not those that were explained."""
    values = document.get("args", [])
    if not isinstance(values, list) or len(values) != len(call.arguments):
        return None
    return arguments(call, values, wide=wide)


def _ends_itself(given: Mapping[str, Any], pid: int) -> bool:
    handle = given.get("process_handle", given.get("ProcessHandle"))
    return handle in _THIS_PROCESS or given.get("process_identifier") == pid


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0
