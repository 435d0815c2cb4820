"""What a signature is, and what it looks at. All that a signature of one's own needs is here."""

from __future__ import annotations

import posixpath
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar

import msgspec


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``behavior.generic``."""

    pid: int = 0
    ppid: int = 0
    process_name: str = ""
    process_path: str = ""
    command_line: str = ""
    autostart: dict[str, Any] | None = None
    """After a restart: ``by`` what it was started, and whether it was ``restored``."""
    summary: dict[str, list[Any]] = {}


class CallFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a process."""

    api: str = ""
    category: str = ""
    status: int = 0
    """1: it succeeded; 0: it did not."""
    return_value: Any = None
    arguments: dict[str, Any] = {}
    time: float = 0.0


class CallingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``behavior.processes``."""

    pid: int = 0
    process_name: str = ""
    calls: list[CallFacts] = []


class BehaviorFacts(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """``behavior``. The calls are large, and only decoded when a signature asks for some."""

    generic: list[ProcessFacts] = []
    summary: dict[str, list[Any]] = {}
    apistats: dict[str, dict[str, int]] = {}
    processes: msgspec.Raw = msgspec.Raw(b"[]")

    @cached_property
    def calling(self) -> list[CallingFacts]:
        """The processes with their calls."""
        return msgspec.json.decode(self.processes, type=list[CallingFacts])


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The part of ``network`` that signatures look at."""

    hosts: list[str] = []
    domains: list[dict[str, Any]] = []
    dns: list[dict[str, Any]] = []
    http: list[dict[str, Any]] = []
    tls: list[dict[str, Any]] = []
    tcp: list[dict[str, Any]] = []
    udp: list[dict[str, Any]] = []

    @property
    def names(self) -> Iterator[str]:
        """Every host name that was asked for, in lower case."""
        for entries, key in ((self.dns, "request"), (self.http, "host"), (self.tls, "sni")):
            yield from (str(entry[key]).lower() for entry in entries if entry.get(key))


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A file: the target, a dropped one, or a dump of a process."""

    name: str = ""
    filepath: str = ""
    """In the guest, of a dropped file."""
    size: int = 0
    type: str = ""
    sha256: str | None = None
    pids: list[int] = []
    yara: list[dict[str, Any]] = []
    urls: list[str] = []


class Observation(msgspec.Struct, frozen=True):
    """An entry of the summary and the process that it belongs to."""

    value: Any
    pid: int
    """0 where no single process is known."""
    process_name: str

    @property
    def path(self) -> str:
        """The path that the entry leaves behind: a moved file's new one."""
        return str(self.value[-1] if isinstance(self.value, list | tuple) else self.value)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that signatures look at: parts of the report, under its own names."""

    category: str = "file"
    target: str = ""
    file: FileFacts = FileFacts()
    """The target, where it is one."""
    static: dict[str, Any] = {}
    behavior: BehaviorFacts = BehaviorFacts()
    network: NetworkFacts = NetworkFacts()
    dropped: list[FileFacts] = []
    procmemory: list[FileFacts] = []

    def seen(self, *categories: str) -> Iterator[Observation]:
        """Every entry of these categories of the summary."""
        for category in categories:
            known: list[Any] = []
            for process in self.behavior.generic:
                for value in process.summary.get(category, ()):
                    known.append(value)
                    yield Observation(value, process.pid, process.process_name)
            # beyond the limits of the single processes, the summary of all goes on
            names = {str(value) for value in known}
            for value in self.behavior.summary.get(category, ()):
                if str(value) not in names:
                    yield Observation(value, 0, "")

    def changed(self) -> Iterator[Observation]:
        """Every file that was made, written or moved to its place."""
        return self.seen("file_created", "file_written", "file_moved")

    def calls(self, *apis: str) -> Iterator[tuple[CallFacts, Observation]]:
        """Every kept call of these names, and the process that made it."""
        if not any(api in counts for counts in self.behavior.apistats.values() for api in apis):
            return
        for process in self.behavior.calling:
            if str(process.pid) not in self.behavior.apistats:
                continue  # it was left out
            who = Observation("", process.pid, process.process_name)
            yield from ((call, who) for call in process.calls if call.api in apis)


Mark = dict[str, Any]
"""One piece of evidence, in the form that Cuckoo's clients know."""


def mark(category: str, ioc: str, observation: Observation | None = None) -> Mark:
    """Evidence: ``ioc`` is what was seen, ``category`` what kind of thing it is."""
    return {
        "type": "ioc",
        "category": category,
        "ioc": ioc,
        "description": None,
        "pid": observation.pid if observation else 0,
        "process_name": observation.process_name if observation else "",
    }


class Signature(ABC):
    """A thing that a sample may do, and how to see that it did."""

    name: ClassVar[str]
    description: ClassVar[str]
    severity: ClassVar[int]
    """1: worth knowing; 2: suspicious; 3: hardly ever harmless."""
    ttp: ClassVar[tuple[str, ...]] = ()
    """Techniques of MITRE ATT&CK."""
    families: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[tuple[str, ...]] = ()
    """Addresses to read on at; without any, those of the techniques."""

    @abstractmethod
    def marks(self, facts: Facts) -> Iterable[Mark]:
        """The evidence; none means that it does not apply."""


class PlantedFile(Signature):
    """A file in one of the places that the system reads by itself."""

    places: ClassVar[re.Pattern[str]]

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.changed():
            if self.places.search(seen.path):
                yield mark("file", seen.path, seen)


class TouchedFile(Signature):
    """A path in some categories of the summary."""

    categories: ClassVar[tuple[str, ...]]
    places: ClassVar[re.Pattern[str]]

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen(*self.categories):
            if self.places.search(seen.path):
                yield mark("file", seen.path, seen)


class SeenCommand(Signature):
    """A command that was started, by its whole line."""

    command: ClassVar[re.Pattern[str]]

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for seen in facts.seen("command_line"):
            if self.command.search(seen.path):
                yield mark("cmdline", seen.path, seen)


def program(names: str, arguments: str = "") -> re.Pattern[str]:
    """A command by its program, wherever that lies, and by how its arguments begin."""
    return re.compile(rf"^(?:\S*/)?(?:busybox +)?(?:{names})(?= |$){arguments}")


def words_of(line: str) -> list[str]:
    """A command line's words; as good as they can be told where it was cut in a quotation."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def basename(path: str) -> str:
    """The last part of a guest's path."""
    return posixpath.basename(path)
