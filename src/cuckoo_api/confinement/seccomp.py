"""A seccomp filter: which system calls a process may still make.

It names what is refused. What it does not name passes, up to the newest call that is known here:
the parsers are of many makers and compiled by many compilers, and a list of what they may call
would lose reports on the next version of a C library.
"""

from __future__ import annotations

import os
import platform
import struct
import sys

from cuckoo_api.confinement.kernel import ADDRESS, buffer, call

_SET_FILTER, _IS_ACTION_KNOWN = 1, 2
_ALL_THREADS = 1

ALLOW = 0x7FFF0000
KILL = 0x80000000
"""The whole process, as by SIGSYS."""
REFUSE = 0x00050000 | 1
"""With EPERM: a library that tries goes on without."""
UNKNOWN = 0x00050000 | 38
"""With ENOSYS: a C library then takes the older call."""

_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x10000

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""What the kernel calls them, and the column of the numbers below; both are little-endian."""
NEWEST = 462
"""The last call that was looked at for this list: mseal. Later ones, and x32's, are unknown."""

# numbers on x86_64 and on aarch64; -1 where there is no such call
_REFUSED = {
    # the network, and other processes' sockets; those that it inherited go on working
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, -1), "vfork": (58, -1),
    "setsid": (112, 157), "setpgid": (109, 154),
    # what Landlock does not guard of a file
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "link": (86, -1), "linkat": (265, 37), "symlink": (88, -1), "symlinkat": (266, 36),
    "mknod": (133, -1), "mknodat": (259, 33), "chroot": (161, 51),
    # other processes of the same user
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    # the memory, messages and semaphores of System V, which any process of a user may open
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # users
    "setuid": (105, 146), "setgid": (106, 144), "setgroups": (116, 159),
    "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
}  # fmt: skip

_DEADLY = {
    # no parser calls these by accident
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "bpf": (321, 280),
    "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "unshare": (272, 97),
    "setns": (308, 268), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, -1), "ioperm": (173, -1),
    "modify_ldt": (154, -1), "personality": (135, 92), "fanotify_init": (300, 262),
}  # fmt: skip

_SECCOMP = (317, 277)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131)}
_PRLIMIT = (302, 261)


def is_available() -> bool:
    """Whether this kernel has filters, for an architecture that is known here."""
    if (column := _column()) < 0:
        return False
    action = buffer(struct.pack("=I", KILL))
    try:
        call(_SECCOMP[column], _IS_ACTION_KNOWN, 0, ADDRESS(action))
    except OSError:
        return False
    return True


def install() -> bool:
    """Filter this process' calls from now on; False where it cannot be.

    Needs ``no_new_privs``. Raises OSError.
    """
    if not is_available():
        return False
    program = build(platform.machine(), os.getpid())
    code = buffer(program)
    head = buffer(struct.pack("@HP", len(program) // 8, ADDRESS(code)))
    call(_SECCOMP[_column()], _SET_FILTER, _ALL_THREADS, ADDRESS(head))
    return True


def build(machine: str, pid: int) -> bytes:
    """The filter as the kernel takes it, for the process ``pid``."""
    architecture, column = ARCHITECTURES[machine]
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, KILL),
        _step(_LOAD, _NUMBER),
        _step(_ABOVE, NEWEST, 0, 1),
        _step(_RETURN, UNKNOWN),
    ]
    for action, calls in ((REFUSE, _REFUSED), (KILL, _DEADLY)):
        for numbers in calls.values():
            if numbers[column] >= 0:
                code += [_step(_EQUAL, numbers[column], 0, 1), _step(_RETURN, action)]
    # the flags of clone3 lie in memory, where no filter sees them
    code += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, UNKNOWN)]
    code += _unless(_CLONE[column], _step(_ANY_BIT, _CLONE_THREAD, 0, 1))
    for numbers in _OWN_ONLY.values():
        code += _unless(numbers[column], _step(_EQUAL, pid, 0, 1))
    code += _unless(_PRLIMIT[column], _step(_EQUAL, 0, 0, 1))  # 0 is the process itself
    return b"".join((*code, _step(_RETURN, ALLOW)))


def _unless(number: int, condition: bytes) -> list[bytes]:
    """Allow a call whose first argument meets the condition, and refuse it otherwise."""
    return [
        _step(_EQUAL, number, 0, 4),
        _step(_LOAD, _ARGUMENTS),
        condition,
        _step(_RETURN, ALLOW),
        _step(_RETURN, REFUSE),
    ]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _column() -> int:
    known = ARCHITECTURES.get(platform.machine())
    # a 32-bit interpreter on a 64-bit kernel calls by other numbers
    return known[1] if known and sys.maxsize > 1 << 32 else -1
