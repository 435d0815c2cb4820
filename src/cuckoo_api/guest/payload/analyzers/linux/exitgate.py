"""Holds each process of the sample at its own end, for as long as somebody looks at it.

The kernel asks here before it lets a process end itself. A process that is killed is not held.
"""

import errno
import fcntl
import os
import select
import struct
import threading
from typing import Callable, List, Optional, TypeVar

T = TypeVar("T")

POLL = 200
SECCOMP_CALLS = {"x86_64": 317, "aarch64": 277}
EXITS = ((0xC000003E, 231), (0x40000003, 252), (0xC00000B7, 94), (0x40000028, 248))
"""exit_group's number under each architecture that such a kernel runs programs of."""
SET_FILTER, NEW_LISTENER, NO_NEW_PRIVS = 1, 8, 38
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
RECEIVE, SEND = 0xC0502100, 0xC0182101
NOTE_SIZE = 80
CONTINUE = 1


class ExitGate:
    """Calls ``look`` with the id of each thread that wants to end its process, one at a time."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self.fault = ""
        """Why nobody is held."""
        self._look = look
        self._handle = -1
        self._keeper: Optional[threading.Thread] = None
        self._closed = threading.Event()

    def start(self, begin: Callable[[], T]) -> T:
        """Run ``begin``; what it starts stands behind the gate, and what that starts, and so on.

        Where there can be no gate, ``fault`` says why. Raises what ``begin`` raises.
        """
        outcome: List[T] = []
        faults: List[BaseException] = []
        installed, kept = threading.Event(), threading.Event()

        def inside() -> None:
            # a filter holds for one thread and its children: never for this program itself
            try:
                self._handle = _install()
            except (ImportError, OSError) as error:
                self.fault = str(error)
            installed.set()
            kept.wait()
            try:
                outcome.append(begin())
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=inside, daemon=True)
        thread.start()
        installed.wait()
        if self._handle >= 0:
            # from out here: else it would stand behind the gate itself
            self._keeper = threading.Thread(target=self._keep, daemon=True)
            self._keeper.start()
        kept.set()
        thread.join()
        if faults:
            raise faults[0]
        return outcome[0]

    def close(self) -> None:
        """Stop asking. For when nothing lives behind the gate: it would not open again."""
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join(5)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _keep(self) -> None:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        while not self._closed.is_set():
            for _, events in poll.poll(POLL):
                if events & ~select.POLLIN:
                    return  # nothing is left behind the gate
                self._answer()

    def _answer(self) -> None:
        note = bytearray(NOTE_SIZE)
        try:
            fcntl.ioctl(self._handle, RECEIVE, note)
            number, pid = struct.unpack_from("=QI", note)
        except OSError:
            return  # it was killed meanwhile
        try:
            self._look(pid)
        finally:
            answer = bytearray(struct.pack("=QqiI", number, 0, 0, CONTINUE))
            try:
                fcntl.ioctl(self._handle, SEND, answer)
            except OSError:
                pass  # the same


def _install() -> int:
    """Put the filter before this thread. Returns the handle on which the kernel asks."""
    import ctypes  # slow to load, and seldom needed

    number = SECCOMP_CALLS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "no gate on %s" % os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program()
    lines = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(lines))
    place = ctypes.create_string_buffer(head, len(head))
    words = [ctypes.c_long(word) for word in (number, SET_FILTER, NEW_LISTENER)]
    handle = libc.syscall(*words, place)
    if handle < 0 and ctypes.get_errno() == errno.EACCES:
        # not root: then it is for those only that gain no rights
        libc.prctl(NO_NEW_PRIVS, *[ctypes.c_ulong(word) for word in (1, 0, 0, 0)])
        handle = libc.syscall(*words, place)
    if handle < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "seccomp")
    fcntl.fcntl(handle, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return int(handle)


def _program() -> bytes:
    """The filter: exit_group is asked about, all else passes."""
    lines = []
    for architecture, number in EXITS:
        # what is another architecture's, or another call, goes on after these lines
        lines += [(LOAD, 0, 0, 4), (EQUAL, 0, 3, architecture),
                  (LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, ASK)]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
