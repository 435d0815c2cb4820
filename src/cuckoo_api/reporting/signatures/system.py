"""What a sample does to the system and its records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import (
    Facts,
    Mark,
    PlantedFile,
    SeenCommand,
    Signature,
    TouchedFile,
    mark,
    program,
)


class KernelModuleLoad(Signature):
    name = "kernel_module_load"
    description = "Loads a kernel module, or tries to"
    severity = 3
    ttp = ("T1547.006",)

    _loader = re.compile(r"^(?:\S*/)?(?:insmod|modprobe) +(?!-\S*[rnlV])[^ ]")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("module_loaded"):
            yield mark("module", seen.path, seen)
        for seen in facts.seen("command_line"):
            if self._loader.search(seen.path):
                yield mark("cmdline", seen.path, seen)


class DisablesHistory(Signature):
    name = "disables_history"
    description = "Keeps its commands out of the shell's history, or removes the history"
    severity = 2
    ttp = ("T1070.003", "T1562.003")

    _command = re.compile(
        r"HISTFILE=(?:/dev/null|['\"\s;]|$)|HIST(?:FILE)?SIZE=0\b|unset\s+HISTFILE"
        r"|history\s+-[cw]*c|set\s+\+o\s+history"
    )
    _file = re.compile(r"/\.(?:bash|zsh|sh|ash|ksh|python)_?history$")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("command_line"):
            if self._command.search(seen.path):
                yield mark("cmdline", seen.path, seen)
        for seen in facts.seen("file_deleted"):
            if self._file.search(seen.path):
                yield mark("file", seen.path, seen)
        for seen in facts.seen("file_linked"):
            link, _, target = seen.path.partition(" -> ")
            if self._file.search(link) and target == "/dev/null":
                yield mark("file", seen.path, seen)


class DeletesLogs(TouchedFile):
    name = "deletes_logs"
    description = "Deletes or empties the system's logs"
    severity = 3
    ttp = ("T1070.002",)
    categories = ("file_deleted", "file_created")
    places = re.compile(
        r"^/var/log/(?:(?:auth|kern|daemon|user|mail|boot|cron|dpkg|yum|dmesg|faillog)(?:\.log)?"
        r"|syslog|messages|secure|maillog|wtmp|btmp|lastlog|tallylog|journal/.+|audit/.+)(?:\.1)?$"
        r"|^/(?:var/)?run/utmp$"
    )


class DisablesSecurity(SeenCommand):
    name = "disables_security"
    description = "Switches off what protects the system, such as a firewall or SELinux"
    severity = 3
    ttp = ("T1562.001", "T1562.004")
    command = re.compile(
        r"^(?:\S*/)?(?:setenforce +(?:0|[Pp]ermissive)|ufw +(?:--force +)?(?:disable|reset)"
        r"|ip6?tables(?:-legacy|-nft)? .*(?:-F|--flush|-P +\w+ +ACCEPT)\b"
        r"|nft +flush +ruleset|auditctl +-e *0|swapoff +-a"
        r"|(?:systemctl +(?:--\S+ +)*(?:stop|disable|mask|kill)(?: +--\S+)*|service|rc-service) .*"
        r"(?:firewalld|iptables|nftables|ufw|auditd|apparmor|selinux|clamav|falco|rsyslog|syslog"
        r"|fail2ban|aliyun|cloudmonitor|wazuh|ossec|falcon-sensor|osquery|crowdsec))"
    )


class KillsProcesses(SeenCommand):
    name = "kills_processes"
    description = "Ends other programs by their names, such as competitors or databases"
    severity = 2
    ttp = ("T1489",)
    command = program("pkill|killall5?|skill", r" +\S")


class ShutsDown(SeenCommand):
    name = "shuts_down"
    description = "Restarts or switches off the machine"
    severity = 2
    ttp = ("T1529",)
    command = re.compile(
        r"^(?:\S*/)?(?:(?:reboot|poweroff|halt|shutdown)(?! +--?(?:help|version))"
        r"(?: |$)|systemctl +(?:reboot|poweroff|halt)|(?:tel)?init +[06](?: |$))"
    )


class ContainerEscape(Signature):
    name = "container_escape"
    description = "Reaches for the host that its container runs on"
    severity = 3
    ttp = ("T1611",)

    _file = re.compile(
        r"/docker\.sock$|/containerd\.sock$|/release_agent$|^/proc/sys/kernel/core_pattern$"
        r"|^/proc/1/root/|^/sys/kernel/uevent_helper$"
    )
    _command = program(
        "nsenter|docker|ctr|crictl", r".*(?: -t *1\b| --target[ =]1\b| -v */:| run )"
    )

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("file_written", "file_read", "file_failed"):
            if self._file.search(seen.path):
                yield mark("file", seen.path, seen)
        for seen in facts.seen("command_line"):
            if self._command.search(seen.path):
                yield mark("cmdline", seen.path, seen)


class ChangesSudoers(PlantedFile):
    name = "changes_sudoers"
    description = "Changes who may act as the administrator"
    severity = 3
    ttp = ("T1548.003",)
    places = re.compile(r"^/etc/(?:sudoers(?:\.d/.+)?|doas\.conf)$")
