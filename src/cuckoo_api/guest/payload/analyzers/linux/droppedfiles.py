"""Finds the files that the sample wrote, keeps them within reach, and sends them."""

import codecs
import hashlib
import os
import re
import stat
from typing import Dict, List, Optional, Set

from results import CHUNK, Log, ResultServer

MAX_PATHS = 2000
MAX_HELD = 400
MAX_FILE = 128 * 1024 * 1024
SKIPPED = ("/proc/", "/sys/", "/dev/")
LINE_LIMIT = 64 * 1024

_AT = rb"(?:(?:AT_FDCWD|\d+)(?:<((?:[^>\\]|\\.)*)>)?, )?"
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_WRITTEN = re.compile(
    rb"(?m)^(\d+) +[\d.]+ (?:"
    rb"(?:open|openat|openat2)\(" + _AT + _TEXT + rb", [^\n]*?O_(?:WRONLY|RDWR|CREAT)"
    rb"|creat\(" + _TEXT +
    rb"|(?:rename|link)(?:at2?)?\(" + _AT + _TEXT + rb", " + _AT + _TEXT + rb")"
)


class DroppedFiles:
    """Paths that the trace shows as written, each held open so that deleting it loses nothing."""

    def __init__(self, excluded: List[str]) -> None:
        self.cwd = "/"
        self._excluded = set(excluded)
        self._pids: Dict[str, Set[str]] = {}
        self._held: Dict[str, int] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take a piece of the trace, cut anywhere."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:] if len(data) - end < LINE_LIMIT else b""
        for match in _WRITTEN.finditer(data, 0, end):
            pid, folder, name, created, _, _, new_folder, new_name = match.groups()
            text = name if name is not None else created
            if new_name is not None:
                folder, text = new_folder, new_name
            self._add(pid.decode(), _decode(folder), _decode(text))

    def paths(self) -> List[str]:
        """Every path noted so far, in the order of appearance."""
        return list(self._pids)

    def send(self, server: ResultServer, log: Log) -> int:
        """Send each regular file once. Returns how many were sent."""
        names: Dict[str, int] = {}
        sent = 0
        for path, pids in self._pids.items():
            handle = open_regular(path)
            held = self._held.pop(path, None)
            if handle is None:
                handle, held = held, None
            if held is not None:
                os.close(held)
            if handle is None:
                continue
            with os.fdopen(handle, "rb") as file:
                name = "%s_%s" % (_sha1(file.fileno())[:16], safe_name(os.path.basename(path)))
                names[name] = names.get(name, 0) + 1
                if names[name] > 1:
                    name = "%s.%d" % (name, names[name])
                try:
                    server.upload("files/" + name, file, path, " ".join(sorted(pids)), MAX_FILE)
                    sent += 1
                except OSError as error:
                    log.warning("Cannot send %r: %s" % (path, error))
        log.info("Sent %d of %d written files." % (sent, len(self._pids)))
        return sent

    def _add(self, pid: str, folder: str, name: str) -> None:
        base = folder or _cwd_of(pid) or self.cwd
        path = os.path.normpath(os.path.join(base, name))
        if path in self._excluded or (path + "/").startswith(SKIPPED):
            return
        if path not in self._pids:
            if len(self._pids) >= MAX_PATHS:
                return
            self._pids[path] = set()
        if len(self._pids[path]) < 32:
            self._pids[path].add(pid)
        if path not in self._held and len(self._held) < MAX_HELD:
            handle = open_regular(path)
            if handle is not None:
                self._held[path] = handle


def open_regular(path: str) -> Optional[int]:
    """Open a regular file that is no link, never waiting for a FIFO or a device."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    return handle


def _sha1(handle: int) -> str:
    digest = hashlib.sha1()
    size = 0
    while size < MAX_FILE:
        data = os.pread(handle, CHUNK, size)
        if not data:
            break
        size += len(data)
        digest.update(data)
    return digest.hexdigest()


def safe_name(name: str) -> str:
    """The name as the result server takes it, most of it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:] or "file"


def _cwd_of(pid: str) -> str:
    try:
        return os.readlink("/proc/%s/cwd" % pid)
    except OSError:
        return ""


def _decode(text: Optional[bytes]) -> str:
    """A path as strace quotes it."""
    return os.fsdecode(codecs.escape_decode(text)[0]) if text else ""
