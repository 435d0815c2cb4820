"""What a sample does to files, its own among them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from cuckoo_api.reporting.signatures.base import (
    Facts,
    Mark,
    SeenCommand,
    Signature,
    basename,
    mark,
    program,
    words_of,
)

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

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("dropped_executed"):
            yield mark("file", seen.path, seen)


class HiddenFile(Signature):
    name = "hidden_file"
    description = "Creates a hidden file or folder"
    severity = 1
    ttp = ("T1564.001",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("file_created", "directory_created"):
            name = basename(seen.path)
            if len(name) > 1 and name[0] == "." and not _USUAL_DOTFILES.fullmatch(name):
                yield mark("file", seen.path, seen)


class SetuidFile(Signature):
    name = "setuid_file"
    description = "Makes a program that runs with the rights of its owner"
    severity = 3
    ttp = ("T1548.001",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("permissions_changed"):
            mode, _, path = seen.path.partition(" ")
            if _mode(mode) & 0o6000 and _mode(mode) & 0o111:
                yield mark("file", path, seen)


class ExecutableInTemporary(Signature):
    name = "executable_in_temporary"
    description = "Makes a file executable in a folder for temporary files"
    severity = 1
    ttp = ("T1222.002",)

    _places = re.compile(r"^/(?:tmp|var/tmp|dev/shm|run/shm|run/user/[0-9]+)/.")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        own = set(_own_paths(facts))
        for seen in facts.seen("permissions_changed"):
            mode, _, path = seen.path.partition(" ")
            if _mode(mode) & 0o111 and self._places.search(path) and path not in own:
                yield mark("file", path, seen)


class ImmutableFile(SeenCommand):
    name = "immutable_file"
    description = "Protects files from being changed or deleted, also by the administrator"
    severity = 2
    ttp = ("T1222.002",)
    command = program("chattr", r".* \+\S*i")


class Timestomp(SeenCommand):
    name = "timestomp"
    description = "Gives a file another date"
    severity = 2
    ttp = ("T1070.006",)
    command = program("touch", r".* (?:-[acm]*[rtd]|--(?:reference|date))(?:\b|=)")


class RansomNote(Signature):
    name = "ransom_note"
    description = "Writes a file that is called like a ransom note"
    severity = 3
    ttp = ("T1486",)

    # looked for one after the other: in one pattern, a hostile name would keep it busy for ever
    _about = re.compile(r"how[ _-]?to|read[ _-]?me|help|instruct|recover|restor|unlock|!!")
    _what = re.compile(r"decrypt|recover|restor|unlock|ransom|your[ _-]?files|files[ _-]?back")
    _ends = (".txt", ".htm", ".html", ".hta", ".md", ".png", ".jpg")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.changed():
            name = basename(seen.path)[-255:].lower()
            about = self._about.search(name) if name.endswith(self._ends) else None
            if about and self._what.search(name, about.end()):
                yield mark("file", seen.path, seen)


class DestroysData(SeenCommand):
    name = "destroys_data"
    description = "Overwrites a disk or wipes files so that they cannot be restored"
    severity = 3
    ttp = ("T1485", "T1561")
    command = re.compile(
        r"^(?:\S*/)?(?:dd .*\bof=/dev/(?:sd|vd|hd|nvme|xvd|mapper/)|(?:shred|wipefs|wipe|scrub) +\S"
        r"|mkfs(?:\.\w+)? .*/dev/|rm +(?:-\S+ +)*-\S*[rR]\S* +(?:-\S+ +)*/(?:\*|$| ))"
    )


def _own_paths(facts: Facts) -> list[str]:
    """What the first command names as the thing to run: a program, or a script after it."""
    for line in facts.behavior.summary.get("command_line", ())[:1]:
        words = words_of(str(line))
        own = [word for word in words[:3] if word and not word.startswith("-")]
        return [
            posixpath.normpath(word)
            for word in own
            if not _INTERPRETERS.fullmatch(basename(word)) and "\0" not in word
        ]
    return []


def _mode(octal: str) -> int:
    try:
        return int(octal, 8)
    except ValueError:
        return 0
