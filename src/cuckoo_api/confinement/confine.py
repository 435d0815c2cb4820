"""Bounds for a process that parses hostile input; each layer holds where another has a hole."""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cuckoo_api.confinement import landlock, seccomp
from cuckoo_api.confinement.kernel import ADDRESS, buffer, call, prctl

MAX_OPEN_FILES = 64
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPGET = {"x86_64": 125, "aarch64": 90}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES_3 = 0x20080522
_DAC_OVERRIDE = 1
_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")

LIBRARIES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib",
    "/usr/share/misc", "/usr/share/file", "/usr/share/zoneinfo", "/usr/share/locale",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/magic",
)  # fmt: skip
"""What libraries read of the system: themselves, and libmagic's data."""
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Layer:
    """Something that confines worker processes, or would."""

    name: str
    holds: bool
    detail: str
    """What it does, or what an operator can do to have it."""


def confinement() -> list[Layer]:
    """Which layers hold on this host. It tries nothing on the calling process."""
    version = landlock.version()
    return [
        Layer("limits", True, "memory, time, file size and open files; no new privileges"),
        Layer(
            "seccomp",
            seccomp.is_available(),
            "no network, no program, no other process"
            if seccomp.is_available()
            else "the kernel needs CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
        ),
        Layer(
            "landlock",
            version > 0,
            f"no file but a few, by version {version}"
            if version
            else "Linux 5.13 has it; it needs landlock in the boot parameter lsm=",
        ),
    ]


def confine(
    *,
    parent: int,
    memory: int,
    cpu: int | None,
    file_size: int,
    readable: Iterable[str] = (),
    writable: Iterable[str] = (),
) -> None:
    """Bound this process for the rest of its life. Sizes in bytes, ``cpu`` in seconds.

    It is killed when its parent dies. Of the files it keeps those below ``readable`` and
    ``writable``, and the libraries. What the kernel does not offer is left out, see
    :func:`confinement`. Raises OSError when the kernel offers it and refuses.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # it died before the line above; nobody waits for this process any more
        os.kill(os.getpid(), signal.SIGKILL)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)  # nor may another worker look into it
    _limit(resource.RLIMIT_AS, memory)
    if cpu is not None:
        _limit(resource.RLIMIT_CPU, cpu)
    _limit(resource.RLIMIT_FSIZE, file_size)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    if os.geteuid() == 0:
        _drop_capabilities()
    code = {path for path in sys.path if path} | {f"{sys.base_prefix}/lib", str(_PACKAGE)}
    landlock.restrict((*LIBRARIES, *code, *readable), writable)
    seccomp.install()


def _drop_capabilities() -> None:
    """Leave root one capability: to open files of others, of which Landlock says which.

    A results folder may belong to the user whose home it is in. A root who may not do one of
    these, as in a container, has no need to.
    """
    with suppress(PermissionError):
        os.setgroups([])
    with suppress(PermissionError):
        for capability in range(int(_LAST_CAPABILITY.read_text()) + 1):
            prctl(_PR_CAPBSET_DROP, capability)
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    machine = os.uname().machine
    if machine not in _CAPSET:
        return
    head = buffer(struct.pack("=Ii", _CAPABILITIES_3, 0))
    sets = buffer(bytes(24))
    call(_CAPGET[machine], ADDRESS(head), ADDRESS(sets))
    # of the capabilities 0 to 31, then 32 and up: effective, permitted, inheritable
    kept = struct.unpack("=6I", sets.raw)[1] & (1 << _DAC_OVERRIDE)
    sets = buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0))
    call(_CAPSET[machine], ADDRESS(head), ADDRESS(sets))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
