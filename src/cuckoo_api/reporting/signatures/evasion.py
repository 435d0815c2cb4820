"""How a sample hides, looks for an observer, or runs inside of others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import (
    Facts,
    Mark,
    SeenCommand,
    Signature,
    TouchedFile,
    mark,
    program,
)

LONG_SLEEP = 60
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class DebuggerCheck(Signature):
    name = "debugger_check"
    description = "Looks whether it is being debugged or traced"
    severity = 2
    ttp = ("T1622",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for call, who in facts.calls("ptrace"):
            if call.arguments.get("request") == "PTRACE_TRACEME":
                yield mark("call", "ptrace(PTRACE_TRACEME)", who)
        for seen in facts.seen("command_line"):
            if "TracerPid" in seen.path:
                yield mark("cmdline", seen.path, seen)


class ProcessInjection(Signature):
    name = "process_injection"
    description = "Changes the memory of another process"
    severity = 3
    ttp = ("T1055.008", "T1055.009")

    _requests = re.compile(r"PTRACE_(?:ATTACH|SEIZE|POKE(?:TEXT|DATA|USER)|SETREGS(?:ET)?)$")
    _memory = re.compile(r"^/proc/(?!self/)[0-9]+/mem$")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for call, who in facts.calls("ptrace", "process_vm_writev"):
            request = str(call.arguments.get("request", ""))
            if call.api == "process_vm_writev" or self._requests.match(request):
                yield mark("call", f"{call.api}({request})", who)
        for seen in facts.seen("file_written"):
            if self._memory.search(seen.path):
                yield mark("file", seen.path, seen)


class MachineCheck(TouchedFile):
    name = "machine_check"
    description = "Looks whether it runs in a virtual machine"
    severity = 2
    ttp = ("T1497.001",)
    categories = ("file_read", "file_failed")
    places = re.compile(
        r"^/sys/(?:class|devices/virtual)/dmi/id/|^/sys/hypervisor/|^/proc/scsi/scsi$"
        r"|^/proc/device-tree/hypervisor|^/dev/(?:vboxguest|vmci)$|^/proc/xen"
        r"|^/sys/firmware/dmi/tables/"
    )

    _tool = program("systemd-detect-virt|virt-what|dmidecode|imvirt|hostnamectl")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        yield from super().marks(facts)
        for seen in facts.seen("command_line"):
            if self._tool.search(seen.path):
                yield mark("cmdline", seen.path, seen)


class LongSleep(Signature):
    name = "long_sleep"
    description = "Waits for longer than an analysis may take"
    severity = 1
    ttp = ("T1497.003",)

    _sleep = program("sleep", r" +([0-9.]+)([smhd]?)$")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("command_line"):
            match = self._sleep.search(seen.path)
            if match and float(match[1]) * _UNITS.get(match[2], 1) >= LONG_SLEEP:
                yield mark("cmdline", seen.path, seen)


class Masquerade(Signature):
    name = "masquerade"
    description = "Calls itself like a thread of the kernel"
    severity = 3
    ttp = ("T1036.011",)

    _name = re.compile(r"'?\[[^\]\s']+\](?:'| |$)")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("command_line"):
            if self._name.match(seen.path):
                yield mark("cmdline", seen.path, seen)


class FilelessExecution(Signature):
    name = "fileless_execution"
    description = "Runs a program that lies in memory, and in no file"
    severity = 3
    ttp = ("T1620",)

    _places = re.compile(r"^/?memfd:|^/(?:proc/(?:self|[0-9]+)/fd/|dev/fd/)[0-9]+$")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for process in facts.behavior.generic:
            if self._places.search(process.process_path):
                item = mark("process", process.process_path)
                yield item | {"pid": process.pid, "process_name": process.process_name}


class DecodesPayload(SeenCommand):
    name = "decodes_payload"
    description = "Decodes or decrypts something that it brought along"
    severity = 2
    ttp = ("T1140", "T1027")
    command = re.compile(
        r"^(?:\S*/)?(?:base(?:64|32) +(?:-\w+ +)*(?:-\w*[dD]\b|--decode)|uudecode|xxd +.*-\w*r"
        r"|openssl +(?:enc|aes\S*|base64)\b.* -d\b|gpg +.*(?:-d\b|--decrypt))"
        r"|\bb64decode\(|\bFromBase64String\("
    )


class ReverseShell(Signature):
    name = "reverse_shell"
    description = "Gives somebody else a shell over the network"
    severity = 3
    ttp = ("T1059.004", "T1095")

    _bash = re.compile(r"/dev/(?:tcp|udp)/[^/\s]+/[0-9]+")
    _tool = program(r"(?:nc|ncat|netcat)(?:\.\w+)?|socat")
    _runs = re.compile(
        r" (?:-\w*[ec]|--(?:sh-)?exec)[ =]*(?:/\S*/)?(?:ba|da|z)?sh\b|\b(?:exec|system):",
        re.IGNORECASE,
    )
    # one after the other: in one pattern, a hostile line would keep it busy for long
    _connects = re.compile(r"\bsocket\b|IO::Socket|TCPSocket|fsockopen")
    _becomes = re.compile(r"pty\.spawn|os\.dup2|\bexec\b|subprocess|proc_open|\bsystem\b")
    _shell = re.compile(r"/bin/(?:ba|da|z)?sh\b|[\"'](?:ba|da|z)?sh\b")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("command_line"):
            line = seen.path
            if (
                self._bash.search(line)
                or (self._tool.search(line) and self._runs.search(line))
                or (
                    self._connects.search(line)
                    and self._becomes.search(line)
                    and self._shell.search(line)
                )
            ):
                yield mark("cmdline", line, seen)
