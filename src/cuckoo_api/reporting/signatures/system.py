"""What a sample does to the system and its records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature, mark


class KernelModuleLoad(Signature):
    name = "kernel_module_load"
    description = "Loads a kernel module, or tries to"
    severity = 3
    ttp = ("T1547.006",)
    references = ("https://attack.mitre.org/techniques/T1547/006/",)

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
    references = ("https://attack.mitre.org/techniques/T1070/003/",)

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
