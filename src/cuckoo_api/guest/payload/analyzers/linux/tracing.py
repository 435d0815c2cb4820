"""Runs the sample under strace and passes the trace on while it is written."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Optional

from containment import Containment
from droppedfiles import DroppedFiles
from exitgate import ExitGate
from results import Log, Stream
from targets import PATH, Command, environment

TRACE_LIMIT = 64 * 1024 * 1024
ERROR_LIMIT = 2048
READ_SIZE = 64 * 1024
PRIORITY = -10
"""The nice value of this program while the sample runs."""
CONSOLE = "/dev/tty1"
SYSCALLS = (
    "execve execveat fork vfork clone clone3 "
    "kill tkill tgkill pidfd_send_signal ptrace process_vm_writev process_vm_readv "
    "setuid setreuid setresuid setgid setregid setresgid capset chroot unshare setns pivot_root "
    "open openat openat2 creat truncate unlink unlinkat rmdir mkdir mkdirat mknod mknodat "
    "rename renameat renameat2 link linkat symlink symlinkat chdir fchdir "
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr flock memfd_create "
    "socket connect bind listen accept accept4 sendto sendmsg sendmmsg "
    "init_module finit_module delete_module kexec_load bpf mount umount2 move_mount fsopen "
    "reboot swapon swapoff sethostname setdomainname settimeofday clock_settime"
)


class Tracer:
    """strace, and under it a shell that waits for one line: the command to become.

    ``start`` takes most of the time and needs no knowledge of the sample; ``release`` runs it.
    """

    def __init__(self, containment: Containment) -> None:
        self._containment = containment
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._stream: Optional[Stream] = None
        self._folder = ""
        self._fifo = self._errors = self._console = -1
        self._size = 0
        self._head = b""
        self._begun = False
        self._last = b""
        self._said = b""
        self.files = DroppedFiles([])

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        """strace's; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def killed(self) -> bool:
        """Whether strace ended before what it traced: its last line is always about an end."""
        return self._begun and not self._last.rstrip().endswith(b"+++")

    def start(self, user: str, gate: Optional[ExitGate] = None) -> None:
        """Start strace and the waiting shell, behind the gate. Raises OSError without strace."""
        strace = shutil.which("strace", path=PATH)
        if strace is None:
            raise OSError("strace is not installed in this guest")
        self._folder = tempfile.mkdtemp(prefix="trace-")
        path = os.path.join(self._folder, "trace")
        os.mkfifo(path, 0o600)
        self._fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._errors, errors = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._console = _open_console()
        words = [strace, "-f", "-q", "-ttt", "-y", "-s", "512", "-o", path, "--seccomp-bpf",
                 "-e", "signal=!SIGCHLD",
                 "-e", "trace=" + ",".join("?" + name for name in SYSCALLS.split())]
        words += ["-u", user] if user else []

        def begin() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                words + ["--", "/bin/sh", "-s"], cwd="/", env=environment(user),
                stdin=subprocess.PIPE, stdout=self._console, stderr=errors, start_new_session=True)

        self._process = gate.start(begin) if gate is not None else begin()
        os.close(errors)
        self._containment.add(self._process.pid)

    def release(self, command: Command, stream: Stream) -> None:
        """Let the shell become the command, and send the trace from there on."""
        if self._process is None or self._process.stdin is None:
            raise OSError("strace was not started")
        self._stream = stream
        _go_first()
        self.files = DroppedFiles([command.target])
        self.files.cwd = command.cwd
        words = " ".join(shlex.quote(word) for word in command.words)
        line = "cd %s && unset OLDPWD && exec %s </dev/null\n" % (shlex.quote(command.cwd), words)
        with self._process.stdin as shell:
            shell.write(os.fsencode(line))

    def follow(self, deadline: float) -> bool:
        """Pass the trace on until all traced processes ended (True) or the deadline (False)."""
        poll = select.poll()
        poll.register(self._fifo, select.POLLIN)
        poll.register(self._errors, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            ready = dict(poll.poll(min(left, 0.5) * 1000))
            if self._errors in ready:
                text = _read(self._errors)
                if not text:
                    poll.unregister(self._errors)
                self._show(text)
            if self._fifo in ready:
                data = _read(self._fifo)
                if data:
                    self._take(data)
                    continue
            # the FIFO has no writer, or none yet
            if self._ended():
                self._drain()
                return True

    def finish(self, log: Log) -> None:
        """Take what is left of the trace and close it; strace has nothing more to trace."""
        limit = time.monotonic() + 5
        if not self.follow(limit) and self._process is not None:
            # stopped or stuck: the sample may have got at it
            self._process.send_signal(signal.SIGKILL)
            self.follow(limit + 5)
        if self._size > TRACE_LIMIT:
            log.warning("The trace was cut at %d bytes of %d." % (TRACE_LIMIT, self._size))
        if self._stream is not None:
            if self._stream.lost:
                log.warning("The result server stopped taking the trace.")
            self._stream.close()
        said = self._said.decode("utf-8", "replace").strip()
        if said:
            log.info("Standard error of the sample: %s" % said)
        code = self._process.poll() if self._process is not None else None
        if code is not None and code >= 0:
            log.info("The sample ended with code %d." % code)
        elif code is not None:
            log.info("The sample was ended by signal %d." % -code)

    def close(self) -> None:
        """Give everything back. A shell that still waits ends, and strace with it."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # after strace: it hangs on a FIFO that lost its reader
        for handle in (self._fifo, self._errors, self._console):
            os.close(handle)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process = None

    def _ended(self) -> bool:
        try:
            return self._process is None or self._process.wait(0.02) is not None
        except subprocess.TimeoutExpired:
            return False

    def _drain(self) -> None:
        """Read what lies in the pipes, now that nobody writes any more."""
        for handle, use in ((self._fifo, self._take), (self._errors, self._show)):
            data = _read(handle)
            while data:
                use(data)
                data = _read(handle)

    def _take(self, data: bytes) -> None:
        if not self._begun:
            # how the shell started is of no interest; its second execve is the command's
            self._head += data
            first = self._head.find(b" execve(")
            at = self._head.find(b" execve(", first + 1)
            if first < 0 or at < 0:
                return
            data = self._head[self._head.rfind(b"\n", 0, at) + 1:]
            self._begun, self._head = True, b""
        self._last = (self._last + data[-READ_SIZE:])[-64:]
        before = self._size
        self._size += len(data)
        if self._stream is not None and self._size <= TRACE_LIMIT:
            self._stream.write(data)
        elif self._stream is not None and before <= TRACE_LIMIT:
            self._stream.write(data[:TRACE_LIMIT - before] + b"\n--- trace cut here ---\n")
        self.files.feed(data)

    def _show(self, text: bytes) -> None:
        """Put what was written to standard error on the screen, and keep its beginning."""
        self._said += text[:ERROR_LIMIT - len(self._said)]
        try:
            os.write(self._console, text)
        except OSError:
            pass  # a screen that does not take it now


def _go_first() -> None:
    """Run before the sample does, whose processes are there already: what it writes and deletes at
    once is to be held before it is gone."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    except OSError:
        pass  # an analyzer without rights takes its turn


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, READ_SIZE)
    except BlockingIOError:
        return b""


def _open_console() -> int:
    """The guest's screen, so that a screenshot shows what the sample prints; else nowhere."""
    for path in (CONSOLE, os.devnull):
        try:
            return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            continue
    raise OSError("there is not even %s" % os.devnull)
