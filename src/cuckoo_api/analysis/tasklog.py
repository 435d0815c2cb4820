"""``cuckoo.log`` of an analysis: what the host did for this task, a line each.

Whatever is logged in the course of a task's work is written there as well as to the server's log:
its lines find their file by the context that they are logged in. Clients may read the file. So it
has no tracebacks, and it is bounded: what a guest makes the host say must not fill the disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

NAME = "cuckoo.log"
MAX_BYTES = 1 << 20
MAX_VALUE = 2000
"""Characters of one value."""
MAX_WAITING = 100
"""Lines that are kept until there is a folder for them."""
CUT = b"The rest is left out.\n"

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WHO = {"task_id", "timestamp", "level", "event", "exc_info", "exception", "logger"}
"""Keys that are shown in another way, or that the file itself says."""


class TaskLog:
    """The log of the task in whose context it was made."""

    def __init__(self) -> None:
        self._handle = -1
        self._left = MAX_BYTES
        self._waiting: list[bytes] = []

    def open(self, folder: Path) -> None:
        """Go on writing to the folder's file. Where that fails, the analysis is the worse for it
        by a log."""
        self.close()
        try:
            self._handle = os.open(folder / NAME, _FLAGS, 0o640)
            size = os.fstat(self._handle).st_size
            is_cut = os.pread(self._handle, len(CUT), max(0, size - len(CUT))) == CUT
            self._left = 0 if is_cut else MAX_BYTES - size
        except OSError:
            return
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self.add(line)

    def close(self) -> None:
        """Write no more."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def add(self, line: bytes) -> None:
        """Write a line, or keep it until there is a file. It is too short to need a thread."""
        if self._handle < 0:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(line)
            return
        if self._left <= 0:
            return
        self._left -= len(line)
        try:
            os.write(self._handle, line if self._left > 0 else CUT)
        except OSError:  # a full disk
            self.close()


_current: ContextVar[TaskLog | None] = ContextVar("task_log", default=None)


@contextmanager
def task_log() -> Iterator[TaskLog]:
    """What is logged within, and by what is begun within, is this task's."""
    log = TaskLog()
    token = _current.set(log)
    try:
        yield log
    finally:
        _current.reset(token)
        log.close()


def keep_in(folder: Path) -> None:
    """There is a folder now for the log of the task in whose context this is called."""
    if (log := _current.get()) is not None:
        log.open(folder)


def record(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the event goes on as it is, and to its task's log."""
    if (log := _current.get()) is not None:
        log.add(_line(event))
    return event


def _line(event: MutableMapping[str, Any]) -> bytes:
    words = [
        str(event.get("timestamp", "")),
        f"{event.get('level', ''):<7}",
        _shown(event.get("event", "")),
        *(f"{k}={_shown(v)}" for k, v in event.items() if k not in _WHO and k[0] != "_"),
    ]
    if (exception := _exception(event.get("exc_info"))) is not None:
        words.append(f"exception={type(exception).__name__}")
    return " ".join(words).encode("utf-8", "backslashreplace") + b"\n"


def _exception(info: object) -> BaseException | None:
    if info is True:
        return sys.exception()
    if isinstance(info, tuple):
        info = info[1]
    return info if isinstance(info, BaseException) else None


def _shown(value: object) -> str:
    text = str(value)[:MAX_VALUE]
    if text.isprintable() and not any(c in text for c in ' "='):
        return text
    return msgspec.json.encode(text.encode("utf-8", "backslashreplace").decode()).decode()
