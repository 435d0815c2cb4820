"""What a signature is, and what it looks at."""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``behavior.generic``."""

    pid: int = 0
    ppid: int = 0
    process_name: str = ""
    summary: dict[str, list[Any]] = {}


class BehaviorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``behavior`` without the calls, which no signature needs and which are large."""

    generic: list[ProcessFacts] = []
    summary: dict[str, list[Any]] = {}


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The part of ``network`` that signatures look at."""

    http: list[dict[str, Any]] = []


class DroppedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an entry of ``dropped`` that signatures look at."""

    filepath: str = ""
    size: int = 0
    pids: list[int] = []


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
    """All that signatures look at."""

    category: str = "file"
    target: str = ""
    behavior: BehaviorFacts = BehaviorFacts()
    network: NetworkFacts = NetworkFacts()
    dropped: list[DroppedFacts] = []

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

    @abstractmethod
    def marks(self, facts: Facts) -> Iterable[Mark]:
        """The evidence; none means that it does not apply."""


def basename(path: str) -> str:
    """The last part of a guest's path."""
    return posixpath.basename(path)
