"""This host: its clock, its limits, and what it has for guests and workers."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cuckoo_api.cli.doctor.finding import FAIL, OK, WARN, Finding
from cuckoo_api.confinement import confinement

MIN_FILES = 4096
"""Descriptors: half are for clients, the rest for what they and the guests open."""
OLDEST = 1_700_000_000
"""Unix time before which no clock is right."""
KVM = Path("/dev/kvm")
PATH = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs of root's lie, which an account may not have in its own."""
_UNSYNCHRONISED = 5  # adjtimex(2): TIME_ERROR
_TIMEX_SIZE = 256


def look_at_host() -> Iterator[Finding]:
    """What of it a server depends on; limits are this process's, as a server's started so."""
    yield _clock()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    advice = "" if files >= MIN_FILES else f"ulimit -n {MIN_FILES}, or LimitNOFILE= in the unit"
    level = WARN if advice else OK
    yield Finding(level, "limits", f"{files} open files are allowed", advice)
    for layer in confinement():
        if layer.holds:
            yield Finding(OK, "confinement", f"{layer.name}: {layer.detail}")
        else:
            missing = f"{layer.name}: worker processes go without"
            yield Finding(WARN, "confinement", missing, layer.detail)
    yield _kvm()


def _clock() -> Finding:
    timex = ctypes.create_string_buffer(_TIMEX_SIZE)  # modes = 0: nothing is set
    state = ctypes.CDLL(None).adjtimex(timex)
    if time.time() < OLDEST:
        return Finding(FAIL, "clock", f"it is {time.ctime()}", "set it; certificates depend on it")
    if state == _UNSYNCHRONISED:
        return Finding(WARN, "clock", "it follows no time server", "apt-get install chrony")
    return Finding(OK, "clock", "it follows a time server")


def _kvm() -> Finding:
    if os.access(KVM, os.R_OK | os.W_OK):
        return Finding(OK, "kvm", f"{KVM} can be used")
    if KVM.exists():
        text = f"{KVM} is not for this account: guests are emulated, slowly"
        return Finding(WARN, "kvm", text, "usermod -aG kvm ACCOUNT, then log in or start anew")
    text = f"there is no {KVM}: guests are emulated, slowly"
    advice = "turn on VT-x or AMD-V in the firmware, or nested virtualisation where this is a guest"
    return Finding(WARN, "kvm", text, advice)


def programs(wanted: Mapping[str, str], what_for: str) -> Iterator[Finding]:
    """Those of them that are missing, by Debian's package of each."""
    path = f"{os.environ.get('PATH', '')}:{PATH}"
    lost = {program for program in wanted if shutil.which(program, path=path) is None}
    if lost:
        text = f"not installed: {', '.join(sorted(lost))}; {what_for}"
        packages = " ".join(sorted({wanted[program] for program in lost}))
        yield Finding(FAIL, "programs", text, f"apt-get install {packages}")
    elif wanted:
        yield Finding(OK, "programs", f"installed: {', '.join(sorted(wanted))}")
