"""What single calls mean: which of them belong into the summary, and how they read there."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable

import msgspec

from cuckoo_api.reporting.bounds import clip, printable
from cuckoo_api.reporting.processors.trace.activity import MAX_TEXT, Activity, Process
from cuckoo_api.reporting.processors.trace.syntax import AT, FD, TEXT, strings, unescape

MAX_PATHS = 8_192
MAX_DNS_SOCKETS = 1_000
MAX_NAME = 253

_PATH = re.compile(AT + TEXT)
_TWO_PATHS = re.compile(AT + TEXT + rb", " + AT + TEXT)
_SYMLINK = re.compile(TEXT + rb", " + AT + TEXT)
_OPEN = re.compile(AT + TEXT + rb", (?:\{flags=)?([A-Z0-9_|a-fx]+)")
_EXEC = re.compile(AT + TEXT + rb", (\[[^\n]*\])")
_INET = re.compile(
    rb"sin6?_port=htons\(([0-9]{1,5})\), (?:sin6_flowinfo=[^,]*, )?"
    rb'(?:sin_addr=inet_addr\("([0-9.]{7,15})"\)|inet_pton\(AF_INET6, "([0-9a-fA-F:.]{2,45})")'
)
_MODE = re.compile(rb", (0[0-7]{0,6})(?:, [A-Z0-9_|]+)?$")
_OWNER = re.compile(rb", (-?[0-9]{1,10}), (-?[0-9]{1,10})(?:, [A-Z0-9_|]+)?$")
_ABSTRACT = re.compile(rb"sun_path=@" + TEXT)
_LOCK = re.compile(r"\.(?:lock|lck|pid)$|^/(?:var|run)/lock/")
INTERPRETER = re.compile(r"(?:ba|da|a|k|z)?sh|(?:python|perl|ruby|lua|php|node|tclsh)[0-9.]*")
_QUIET = ("/dev/null", "/dev/tty", "/dev/pts/", "/dev/zero", "/dev/urandom", "/dev/random")


MOVING = frozenset(
    (b"chdir", b"fchdir", b"execve", b"execveat", b"fork", b"vfork", b"clone", b"clone3")
)
"""Calls after which the same words may mean something else."""
SENDING = frozenset((b"sendto", b"sendmsg", b"sendmmsg"))
"""Calls that mean something only on a socket that was found to be for DNS."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One completed call as the trace has it."""

    process: Process
    seen: float
    arguments: bytes
    result: bytes
    failed: bool
    path: bytes | None
    """What the returned descriptor leads to."""


class Interpreter:
    """Puts the calls that matter into the summary."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._paths: dict[tuple[str | bytes, bytes], str] = {}
        self._dns: set[bytes] = set()
        self.handlers: dict[bytes, Callable[[Call], None]] = {
            **dict.fromkeys((b"open", b"openat", b"openat2"), self._open),
            b"creat": self._create,
            **dict.fromkeys((b"mknod", b"mknodat"), self._create),
            b"truncate": self._truncate,
            **dict.fromkeys((b"unlink", b"unlinkat"), self._unlink),
            b"rmdir": self._rmdir,
            **dict.fromkeys((b"mkdir", b"mkdirat"), self._mkdir),
            **dict.fromkeys((b"rename", b"renameat", b"renameat2"), self._rename),
            **dict.fromkeys((b"link", b"linkat"), self._link),
            **dict.fromkeys((b"symlink", b"symlinkat"), self._symlink),
            **dict.fromkeys((b"chmod", b"fchmod", b"fchmodat", b"fchmodat2"), self._chmod),
            **dict.fromkeys((b"chown", b"lchown", b"fchown", b"fchownat"), self._chown),
            b"flock": self._flock,
            **dict.fromkeys((b"chdir", b"fchdir"), self._chdir),
            **dict.fromkeys((b"execve", b"execveat"), self._execute),
            **dict.fromkeys((b"fork", b"vfork", b"clone", b"clone3"), self._fork),
            b"connect": self._connect,
            b"bind": self._bind,
            **dict.fromkeys((b"sendto", b"sendmsg", b"sendmmsg"), self._send),
            **dict.fromkeys((b"init_module", b"finit_module"), self._module),
        }
        """By the call's name; every one may be called with arguments of any shape."""

    def _open(self, call: Call) -> None:
        match = _OPEN.match(call.arguments)
        if match is None:
            return
        folder, name, flags = match.groups()
        process, add = call.process, self._activity.add
        writes = b"O_WRONLY" in flags or b"O_RDWR" in flags
        if call.failed:
            if not self._activity.full(process, "file_failed"):
                add(process, "file_failed", self._resolve(process, folder, name))
            return
        if not (writes or b"O_DIRECTORY" in flags) and self._activity.full(process, "file_read"):
            return
        if call.path and call.path.startswith(b"/"):
            # where it led to: a link in the path says nothing
            path = self._resolve(process, b"/", call.path)
        else:
            path = self._resolve(process, folder, name)
        if b"O_DIRECTORY" in flags:
            add(process, "directory_enumerated", path)
        elif path.startswith(_QUIET) or b"O_PATH" in flags:
            return
        elif writes:
            self._written(process, path, created=_creates(flags))
            if b"O_CREAT" in flags and _LOCK.search(path):
                add(process, "mutex", path)
        else:
            add(process, "file_read", path)

    def _create(self, call: Call) -> None:
        for path in self._path(call):
            self._written(call.process, path, created=True)

    def _truncate(self, call: Call) -> None:
        for path in self._path(call):
            self._written(call.process, path, created=False)

    def _written(self, process: Process, path: str, *, created: bool) -> None:
        if created:
            self._activity.add(process, "file_created", path)
        self._activity.add(process, "file_written", path)

    def _unlink(self, call: Call) -> None:
        if call.arguments.endswith(b"AT_REMOVEDIR"):
            self._rmdir(call)
            return
        for path in self._path(call, "file_deleted"):
            self._activity.add(call.process, "file_deleted", path)

    def _rmdir(self, call: Call) -> None:
        for path in self._path(call, "directory_removed"):
            self._activity.add(call.process, "directory_removed", path)

    def _mkdir(self, call: Call) -> None:
        for path in self._path(call, "directory_created"):
            self._activity.add(call.process, "directory_created", path)

    def _rename(self, call: Call) -> None:
        match = _TWO_PATHS.match(call.arguments)
        if match is None or call.failed:
            return
        old = self._resolve(call.process, match[1], match[2])
        new = self._resolve(call.process, match[3], match[4])
        self._activity.add(call.process, "file_moved", old, new)

    def _link(self, call: Call) -> None:
        match = _TWO_PATHS.match(call.arguments)
        if match is not None and not call.failed:
            new = self._resolve(call.process, match[3], match[4])
            self._activity.add(call.process, "file_created", new)

    def _symlink(self, call: Call) -> None:
        match = _SYMLINK.match(call.arguments)
        if match is not None and not call.failed:
            new = self._resolve(call.process, match[2], match[3])
            self._activity.add(call.process, "file_created", new)
            target = printable(unescape(match[1]))
            self._activity.add(call.process, "file_linked", f"{new} -> {target}")

    def _chmod(self, call: Call) -> None:
        mode = _MODE.search(call.arguments)
        if mode is not None:
            for path in self._subject(call):
                text = f"{mode[1].decode('ascii')} {path}"
                self._activity.add(call.process, "permissions_changed", text)

    def _chown(self, call: Call) -> None:
        owner = _OWNER.search(call.arguments)
        if owner is not None:
            for path in self._subject(call):
                text = f"{owner[1].decode('ascii')}:{owner[2].decode('ascii')} {path}"
                self._activity.add(call.process, "owner_changed", text)

    def _flock(self, call: Call) -> None:
        if b"LOCK_EX" in call.arguments or b"LOCK_SH" in call.arguments:
            for path in self._subject(call):
                self._activity.add(call.process, "mutex", path)

    def _subject(self, call: Call) -> tuple[str, ...]:
        """The file of a call that succeeded, by its path or by a descriptor."""
        descriptor = FD.match(call.arguments)
        if descriptor is None or _PATH.match(call.arguments) is not None:
            return self._path(call)
        return () if call.failed else (self._resolve(call.process, b"/", descriptor[1]),)

    def _chdir(self, call: Call) -> None:
        if call.failed:
            return
        descriptor = FD.match(call.arguments)
        if descriptor is not None:
            call.process.cwd = self._resolve(call.process, b"/", descriptor[1])
        else:
            for path in self._path(call):
                call.process.cwd = path

    def _execute(self, call: Call) -> None:
        match = _EXEC.match(call.arguments)
        if match is None or call.failed:
            return
        process = call.process
        path = self._resolve(process, match[1], match[2])
        words = [printable(word) for word in strings(match[3])]
        line = clip(shlex.join(words) if words else path, MAX_TEXT)
        process.name = posixpath.basename(path)
        process.path = clip(path, MAX_TEXT)
        process.command_line = line
        self._activity.add(process, "command_line", line)
        process.unplaced = None if process.cwd else words
        self._ran(process, path, words)

    def _ran(self, process: Process, path: str, words: list[str]) -> None:
        for program in (path, self._script(process, words)):
            if self._activity.knows("file_written", program):
                self._activity.add(process, "dropped_executed", program)

    def _script(self, process: Process, words: list[str]) -> str:
        """The file that a command gives to an interpreter; empty when there is none."""
        if not INTERPRETER.fullmatch(process.name):
            return ""
        for word in words[1:]:
            if word.startswith("-c"):
                return ""
            if not word.startswith("-"):
                return posixpath.normpath(posixpath.join(process.cwd or "/", word))
        return ""

    def _fork(self, call: Call) -> None:
        if call.failed or not call.result.isdigit():
            return
        pid = int(call.result)
        if b"CLONE_THREAD" in call.arguments:
            self._activity.thread(call.process, pid)
        else:
            child = self._activity.forked(call.process, pid, call.seen)
            if child is not None and child.unplaced is not None:
                # it was faster than the news of it: only now it is known what "./x" was
                words, child.unplaced = child.unplaced, None
                path = posixpath.normpath(posixpath.join(child.cwd or "/", child.path))
                child.path = clip(path, MAX_TEXT)
                self._ran(child, path, words)

    def _connect(self, call: Call) -> None:
        match = _INET.search(call.arguments)
        if match is None:
            return
        port, address = int(match[1]), (match[2] or match[3]).decode("ascii")
        descriptor = FD.match(call.arguments)
        if port == 53 and descriptor is not None and len(self._dns) < MAX_DNS_SOCKETS:
            self._dns.add(descriptor[1])
        if port:  # port 0 is how a program asks which of its addresses it would use
            self._activity.add(call.process, "connects_ip", address)
            self._activity.add(call.process, "connects_host", _endpoint(address, port))

    def _bind(self, call: Call) -> None:
        if call.failed:
            return
        abstract = _ABSTRACT.search(call.arguments)
        if abstract is not None:
            # a name that only one process can hold, and that no file shows
            name = printable(unescape(abstract[1]))
            self._activity.add(call.process, "mutex", f"@{name}")
        match = _INET.search(call.arguments)
        if match is not None and int(match[1]):
            address = (match[2] or match[3]).decode("ascii")
            self._activity.add(call.process, "listens_on", _endpoint(address, int(match[1])))

    def _send(self, call: Call) -> None:
        descriptor = FD.match(call.arguments)
        known = descriptor is not None and descriptor[1] in self._dns
        if not known and b"port=htons(53)" not in call.arguments:
            return
        for data in strings(call.arguments):
            name = _question(data)
            if name:
                self._activity.add(call.process, "resolves_host", name)

    def _module(self, call: Call) -> None:
        if call.failed:
            return
        descriptor = FD.match(call.arguments)
        path = self._resolve(call.process, b"/", descriptor[1]) if descriptor else "from memory"
        self._activity.add(call.process, "module_loaded", path)

    def _path(self, call: Call, category: str = "") -> tuple[str, ...]:
        """The path of a call that succeeded, as a tuple of one or none.

        None as well when it is for a category that is full: a flood of paths is not looked at.
        """
        if call.failed or self._activity.full(call.process, category):
            return ()
        match = _PATH.match(call.arguments)
        if match is None:
            return ()
        return (self._resolve(call.process, match[1], match[2]),)

    def _resolve(self, process: Process, folder: bytes | None, name: bytes) -> str:
        key = (process.cwd if folder is None else folder, name)
        path = self._paths.get(key)
        if path is None:
            base = process.cwd if folder is None else printable(unescape(folder))
            path = posixpath.normpath(posixpath.join(base, printable(unescape(name))))
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[key] = path
        return path


def _creates(flags: bytes) -> bool:
    """Whether the file is new for all that can be told: appending is most often to an old one."""
    return b"O_EXCL" in flags or (b"O_CREAT" in flags and b"O_APPEND" not in flags)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _question(data: bytes) -> str:
    """The name that a DNS query asks for; empty when it is none."""
    if len(data) < 17 or data[2] & 0x80 or data[4:6] == b"\0\0":
        return ""
    labels: list[str] = []
    at = 12
    while at < len(data) and data[at]:
        length = data[at]
        if length > 63 or at + length >= len(data):
            return ""
        labels.append(printable(data[at + 1 : at + 1 + length]))
        at += length + 1
    return ".".join(labels)[:MAX_NAME].lower()
