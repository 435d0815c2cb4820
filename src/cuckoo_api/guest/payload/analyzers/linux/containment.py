"""Keeps the sample from starving the analyzer, and ends all of it when the time is over."""

import os
import resource
import signal
import time
from typing import List, Optional, Set

CGROUPS = "/sys/fs/cgroup"
MAX_PROCESSES = 512
GRACE = 2.0
LIMIT = 6.0


def protect_self() -> None:
    """Rise above the sample, as far as this user may."""
    _try_write("/proc/self/oom_score_adj", "-1000")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass  # not root


class Containment:
    """A control group for the sample where the guest has them, and the means to kill all of it."""

    def __init__(self) -> None:
        self._folder: Optional[str] = None
        folder = os.path.join(CGROUPS, "sample-%d" % os.getpid())
        if not os.path.exists(os.path.join(CGROUPS, "cgroup.procs")):
            return
        try:
            os.mkdir(folder)
        except OSError:
            return  # not root, or not writable: the rest still holds
        self._folder = folder
        _try_write(os.path.join(folder, "pids.max"), str(MAX_PROCESSES))
        _try_write(os.path.join(folder, "memory.max"), str(_memory() * 3 // 4))

    def add(self, pid: int) -> None:
        """Put a process in, with the usual rank and limits, before it has children."""
        if self._folder:
            _try_write(os.path.join(self._folder, "cgroup.procs"), str(pid))
        _try_write("/proc/%d/oom_score_adj" % pid, "0")
        try:
            os.setpriority(os.PRIO_PROCESS, pid, 0)
            # holds for a sample that is not root; root is held by the group
            resource.prlimit(pid, resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
        except (OSError, ValueError):
            pass  # not root, or already lower

    def members(self, tracer: int) -> List[int]:
        """The sample's processes that live now."""
        return sorted(self._members(tracer))

    def freeze(self, frozen: bool) -> None:
        """Stop the sample and its tracer where they are, or let them go on."""
        if self._folder:
            _try_write(os.path.join(self._folder, "cgroup.freeze"), "1" if frozen else "0")

    def stop(self, tracer: int) -> int:
        """Kill the sample; the tracer then ends by itself, and is killed too if it does not.

        Returns how many processes are left that could not be killed.
        """
        if self._folder:
            # with no room for another process, a fork bomb loses the race
            _try_write(os.path.join(self._folder, "pids.max"), "0")
        start = time.monotonic()
        victims = self._members(tracer)
        while victims and time.monotonic() - start < LIMIT:
            _kill(victims)
            if self._folder and time.monotonic() - start > GRACE:
                # all at once, the tracer too: it may be stopped, or drown in a thousand deaths
                _try_write(os.path.join(self._folder, "cgroup.kill"), "1")
            time.sleep(0.02)
            victims = self._members(tracer)
        return len(victims)

    def wait(self, deadline: float) -> None:
        """Wait until nothing of the sample lives, at most until the deadline."""
        while time.monotonic() < deadline and self._folder and _group(self._folder):
            time.sleep(0.2)

    def close(self) -> None:
        """Remove the group; the kernel refuses while something in it lives."""
        if self._folder:
            try:
                os.rmdir(self._folder)
            except OSError:
                pass  # something survived, and was reported

    def _members(self, tracer: int) -> Set[int]:
        # a traced process that left the group is found by its tracer; to look at every process of
        # the guest is slow, hence only once the group is empty
        members = set(_group(self._folder)) if self._folder else set()
        return (members - {tracer}) or set(_traced(tracer)) - {os.getpid()}


def _kill(victims: Set[int]) -> None:
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass  # it has just ended


def _group(folder: str) -> List[int]:
    try:
        with open(os.path.join(folder, "cgroup.procs")) as file:
            return [int(line) for line in file]
    except OSError:
        return []


def _traced(tracer: int) -> List[int]:
    """Every process whose tracer this is, wherever it moved to."""
    wanted = b"TracerPid:\t%d\n" % tracer
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/status" % name, "rb") as file:
                status = file.read()
        except OSError:
            continue  # it has ended
        if wanted in status and b"\nState:\tZ" not in status:
            found.append(int(name))
    return found


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _try_write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError:
        pass  # a limit that this guest does not have
