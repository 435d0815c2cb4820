"""The shape of strace's lines, as ``strace -f -ttt -y`` writes them.

Whoever is traced chooses paths and data, so nothing here may be fooled by a path that looks like
the end of a line: strace quotes ``"``, ``<``, ``>`` and ``\\n`` inside what it prints, and the
patterns rely on that alone. Each is linear in the length of the line.
"""

from __future__ import annotations

import re

from cuckoo_api.reporting.bounds import clip, printable

MAX_ARGUMENTS = 12
MAX_VALUE = 2048

LINE = re.compile(
    rb" *+([0-9]{1,10}) ++([0-9]{1,12}\.[0-9]{1,9}) (?:"
    rb"([a-z_][a-z0-9_]{0,31})\((.*)\) += "
    rb"(\?|-?[0-9]{1,20}|0x[0-9a-f]{1,16})(?:<((?:[^<>\n-]++|->?)*)>(?:\(deleted\))?)?"
    rb"(?: ([A-Z][A-Z0-9]{1,24})?[^\n]{0,512}\))?"
    rb"|(.*))$"
)
"""What a whole line holds: pid, time, then call, arguments, result, the result's path and the
error's name; or the rest as it is."""

UNFINISHED = re.compile(rb"([a-z_][a-z0-9_]{0,31})\((.*) <unfinished \.\.\.>\)?$")
RESUMED = re.compile(rb"<\.\.\. ([a-z_][a-z0-9_]{0,31}) resumed>(.*)$")
EXITED = re.compile(rb"\+\+\+ exited with ([0-9]{1,10}) \+\+\+$")
KILLED = re.compile(rb"\+\+\+ killed by (SIG[A-Z0-9_+]{1,16})(?: \(core dumped\))? \+\+\+$")
SUPERSEDED = re.compile(rb"\+\+\+ superseded by execve in pid ([0-9]{1,10}) \+\+\+$")
SIGNAL = re.compile(rb"--- (SIG[A-Z0-9_+]{1,16}) ")

AT = rb"(?:(?:AT_FDCWD|-?[0-9]++)(?:<([^<>]*+)>(?:\(deleted\))?)?, )?"
TEXT = rb'"((?:[^"\\]++|\\.)*+)"(?:\.\.\.)?'
FD = re.compile(rb"-?[0-9]++<((?:[^<>-]++|->?)*)>")

_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b"}
_TOKEN = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"(?:\.\.\.)?'
    rb"|/\*.*?\*/"
    rb"|(?<=[0-9D])<(?!<)(?:[^<>-]++|->?)*>"
    rb"|(?P<comma>, )|(?P<open>[\[{(])|(?P<close>[\]})])"
    rb"|[^\"\[\](){},/<]++"
    rb"|."
)
_STRING = re.compile(TEXT)
_WHOLE_STRING = re.compile(TEXT + rb"$")


def unescape(text: bytes) -> bytes:
    """The bytes of a string as strace quotes it, without its quotes."""
    if b"\\" not in text:
        return text
    return _ESCAPE.sub(_escaped, text)


def strings(text: bytes) -> list[bytes]:
    """Every quoted string, unescaped."""
    return [unescape(match[1]) for match in _STRING.finditer(text)]


def arguments(api: str, text: bytes) -> dict[str, str]:
    """The arguments of a call by name: what is known of the call, else ``p0``, ``p1``, …"""
    names = NAMES.get(api, ())
    result: dict[str, str] = {}
    for index, value in enumerate(_split(text)):
        name = names[index] if index < len(names) else f"p{index}"
        whole = _WHOLE_STRING.match(value)
        shown = printable(unescape(whole[1]) if whole else value)
        result[name] = clip(shown, MAX_VALUE)
    return result


def _split(text: bytes) -> list[bytes]:
    """Cut at the commas that stand outside of strings, brackets and paths."""
    parts: list[bytes] = []
    depth = start = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
        elif kind == "comma" and depth <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
            if len(parts) >= MAX_ARGUMENTS:
                return parts
    if text[start:]:
        parts.append(text[start:])
    return parts


def _escaped(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, plain = match.groups()
    if octal is not None:
        return bytes((int(octal, 8) & 255,))
    if hexadecimal is not None:
        return bytes((int(hexadecimal, 16),))
    return _PLAIN.get(plain, plain)


_FILE = (
    "open openat openat2 creat unlink unlinkat rmdir mkdir mkdirat mknod mknodat rename "
    "renameat renameat2 link linkat symlink symlinkat truncate chmod fchmod fchmodat "
    "fchmodat2 chown fchown lchown fchownat setxattr read write pread64 pwrite64 readv writev "
    "close stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat "
    "getdents getdents64 lseek ioctl fcntl dup dup2 dup3 chdir fchdir getcwd ftruncate fsync "
    "utimensat memfd_create sendfile copy_file_range flock umask pipe pipe2 statfs fadvise64 "
    "fallocate inotify_add_watch"
)
_PROCESS = (
    "execve execveat fork vfork clone clone3 kill tkill tgkill pidfd_send_signal ptrace "
    "process_vm_writev process_vm_readv setuid setreuid setresuid setgid setregid setresgid "
    "capset chroot unshare setns pivot_root exit exit_group wait4 waitid getpid getppid "
    "gettid setpgid setsid prctl arch_prctl set_tid_address prlimit64 getuid geteuid getgid "
    "getegid sched_yield"
)
_NETWORK = (
    "socket connect bind listen accept accept4 sendto sendmsg sendmmsg recvfrom recvmsg "
    "recvmmsg setsockopt getsockopt getsockname getpeername shutdown socketpair"
)
_SYSTEM = (
    "init_module finit_module delete_module kexec_load bpf mount umount2 move_mount fsopen "
    "reboot swapon swapoff sethostname setdomainname settimeofday clock_settime uname sysinfo "
    "syslog"
)
_MEMORY = "mmap munmap mprotect brk madvise mremap"

CATEGORIES: dict[str, str] = {
    name: category
    for category, names in (
        ("file", _FILE),
        ("process", _PROCESS),
        ("network", _NETWORK),
        ("system", _SYSTEM),
        ("memory", _MEMORY),
    )
    for name in names.split()
}
"""The group of each call; others are ``misc``."""

NAMES: dict[str, tuple[str, ...]] = {
    "execve": ("filepath", "argv", "envp"),
    "execveat": ("dirfd", "filepath", "argv", "envp", "flags"),
    "open": ("filepath", "flags", "mode"),
    "openat": ("dirfd", "filepath", "flags", "mode"),
    "openat2": ("dirfd", "filepath", "how", "size"),
    "creat": ("filepath", "mode"),
    "unlink": ("filepath",),
    "unlinkat": ("dirfd", "filepath", "flags"),
    "rmdir": ("filepath",),
    "mkdir": ("filepath", "mode"),
    "mkdirat": ("dirfd", "filepath", "mode"),
    "rename": ("oldpath", "newpath"),
    "renameat": ("olddirfd", "oldpath", "newdirfd", "newpath"),
    "renameat2": ("olddirfd", "oldpath", "newdirfd", "newpath", "flags"),
    "link": ("oldpath", "newpath"),
    "linkat": ("olddirfd", "oldpath", "newdirfd", "newpath", "flags"),
    "symlink": ("target", "filepath"),
    "symlinkat": ("target", "dirfd", "filepath"),
    "truncate": ("filepath", "length"),
    "chmod": ("filepath", "mode"),
    "fchmodat": ("dirfd", "filepath", "mode", "flags"),
    "chdir": ("filepath",),
    "socket": ("domain", "type", "protocol"),
    "connect": ("sockfd", "address", "length"),
    "bind": ("sockfd", "address", "length"),
    "listen": ("sockfd", "backlog"),
    "sendto": ("sockfd", "buffer", "length", "flags", "address", "address_length"),
    "kill": ("pid", "signal"),
    "ptrace": ("request", "pid", "address", "data"),
    "init_module": ("image", "length", "parameters"),
    "finit_module": ("fd", "parameters", "flags"),
    "mount": ("source", "target", "type", "flags", "data"),
    "read": ("fd", "buffer", "length"),
    "write": ("fd", "buffer", "length"),
}
