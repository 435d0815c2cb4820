"""What a sample does to files, its own among them."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature, basename, mark

MASS_WRITTEN = 100
MASS_MOVED = 50
MASS_DELETED = 50

_INTERPRETERS = re.compile(
    r"(?:ba|da|a|k|z)?sh|(?:python|perl|ruby|lua|php|node)[0-9.]*|busybox|env"
)
_USUAL_DOTFILES = re.compile(
    r"\.(?:profile|bashrc|bash_profile|bash_login|bash_logout|bash_history|zshrc|zprofile|zshenv"
    r"|kshrc|cshrc|cache|config|local|ssh|gnupg|viminfo|lesshst|wget-hsts|python_history|hushlogin"
    r"|Xauthority|ICE-unix|X11-unix|font-unix|XIM-unix|[^/]+\.sw[opx])"
)


class SelfDelete(Signature):
    name = "self_delete"
    description = "Deletes its own file"
    severity = 2
    ttp = ("T1070.004",)
    references = ("https://attack.mitre.org/techniques/T1070/004/",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        own = _own_paths(facts)
        for seen in facts.seen("file_deleted"):
            path = seen.path
            if any(path == word or (word[0] != "/" and path.endswith("/" + word)) for word in own):
                yield mark("file", path, seen)


class MassFileChange(Signature):
    name = "mass_file_change"
    description = "Changes many files, as ransomware and wipers do"
    severity = 3
    ttp = ("T1486", "T1485")
    references = ("https://attack.mitre.org/techniques/T1486/",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for category, least, word in (
            ("file_written", MASS_WRITTEN, "written"),
            ("file_moved", MASS_MOVED, "renamed"),
            ("file_deleted", MASS_DELETED, "deleted"),
        ):
            entries = [
                entry
                for entry in facts.behavior.summary.get(category, ())
                if not str(entry).startswith(("/proc/", "/sys/", "/dev/"))
            ]
            if len(entries) >= least:
                yield mark("count", f"{len(entries)} files {word}")
                for entry in entries[:5]:
                    yield mark("file", " -> ".join(entry) if isinstance(entry, list) else entry)


class ExecutesDropped(Signature):
    name = "executes_dropped"
    description = "Runs a file that it wrote itself"
    severity = 2
    ttp = ("T1204.002",)
    references = ("https://attack.mitre.org/techniques/T1204/002/",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("dropped_executed"):
            yield mark("file", seen.path, seen)


class ReadsShadow(Signature):
    name = "reads_shadow"
    description = "Reads the users' password hashes, or tries to"
    severity = 3
    ttp = ("T1003.008",)
    references = ("https://attack.mitre.org/techniques/T1003/008/",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("file_read", "file_failed"):
            if seen.path in ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"):
                yield mark("file", seen.path, seen)


class HiddenFile(Signature):
    name = "hidden_file"
    description = "Creates a hidden file or folder"
    severity = 1
    ttp = ("T1564.001",)
    references = ("https://attack.mitre.org/techniques/T1564/001/",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("file_created", "directory_created"):
            name = basename(seen.path)
            if len(name) > 1 and name[0] == "." and not _USUAL_DOTFILES.fullmatch(name):
                yield mark("file", seen.path, seen)


def _own_paths(facts: Facts) -> list[str]:
    """What the first command names as the thing to run: a program, or a script after it."""
    for line in facts.behavior.summary.get("command_line", ())[:1]:
        try:
            words = shlex.split(str(line))
        except ValueError:
            return []  # it was cut in the middle of a quoted word
        own = [word for word in words[:3] if word and not word.startswith("-")]
        return [
            posixpath.normpath(word)
            for word in own
            if not _INTERPRETERS.fullmatch(basename(word)) and "\0" not in word
        ]
    return []
