"""A report's gist, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cuckoo_api.reporting.bounds import visible

MAX_WIDTH = 200


@dataclass(frozen=True, slots=True)
class SignatureLine:
    """A signature that fired."""

    name: str
    description: str
    severity: int
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProcessLine:
    """A process in the tree, parents before their children."""

    depth: int
    """0 for the first process."""
    pid: int
    name: str
    command_line: str


@dataclass(frozen=True, slots=True)
class DroppedLine:
    """A file that the guest sent."""

    filepath: str
    """In the guest; the stored name where that is not known."""
    size: int
    type: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What to show of a report. Every text is one line without control characters."""

    score: float
    """0 to 10."""
    signatures: tuple[SignatureLine, ...]
    processes: tuple[ProcessLine, ...]
    files_written: tuple[str, ...]
    files_deleted: tuple[str, ...]
    dns: tuple[str, ...]
    """``name -> first address``, or the name alone where nothing was answered."""
    http: tuple[str, ...]
    """``METHOD uri -> status``."""
    hosts: tuple[str, ...]
    screenshots: int
    dumps: int
    """Of the memory of processes."""
    dropped: tuple[DroppedLine, ...]
    errors: tuple[str, ...]


def summarise(report: Mapping[str, Any]) -> Summary:
    """The gist of a report of any age: a part that is missing counts as empty."""
    behavior = _mapping(report.get("behavior"))
    files = _mapping(behavior.get("summary"))
    network = _mapping(report.get("network"))
    score = _mapping(report.get("info")).get("score")
    return Summary(
        score=float(score) if isinstance(score, int | float) else 0.0,
        signatures=tuple(_signature(item) for item in _mappings(report.get("signatures"))),
        processes=tuple(_tree(behavior.get("processtree"))),
        files_written=_texts(files.get("file_written")),
        files_deleted=_texts(files.get("file_deleted")),
        dns=tuple(_dns(network)),
        http=tuple(_http(item) for item in _mappings(network.get("http"))),
        hosts=_texts(network.get("hosts")),
        screenshots=len(_list(report.get("screenshots"))),
        dumps=len(_list(report.get("procmemory"))),
        dropped=tuple(_dropped(item) for item in _mappings(report.get("dropped"))),
        errors=_texts(_mapping(report.get("debug")).get("errors")),
    )


def _signature(item: Mapping[str, Any]) -> SignatureLine:
    return SignatureLine(
        name=_text(item.get("name")),
        description=_text(item.get("description")),
        severity=_number(item.get("severity")),
        evidence=_texts([mark.get("ioc") for mark in _mappings(item.get("marks"))]),
    )


def _tree(nodes: Any) -> Iterator[ProcessLine]:
    """Depth first, without recursion: the depth of a foreign report is not ours to trust."""
    waiting = [(0, node) for node in reversed(list(_mappings(nodes)))]
    while waiting:
        depth, node = waiting.pop()
        yield ProcessLine(
            depth=depth,
            pid=_number(node.get("pid")),
            name=_text(node.get("process_name")),
            command_line=_text(node.get("command_line")),
        )
        children = reversed(list(_mappings(node.get("children"))))
        waiting += [(depth + 1, child) for child in children]


def _dns(network: Mapping[str, Any]) -> Iterator[str]:
    for item in _mappings(network.get("domains")):
        name, address = _text(item.get("domain")), _text(item.get("ip"))
        yield f"{name} -> {address}" if address else name


def _http(item: Mapping[str, Any]) -> str:
    line = f"{_text(item.get('method'))} {_text(item.get('uri'))}"
    status = item.get("status")
    return f"{line} -> {status}" if isinstance(status, int) else line


def _dropped(item: Mapping[str, Any]) -> DroppedLine:
    return DroppedLine(
        filepath=_text(item.get("filepath") or item.get("name")),
        size=_number(item.get("size")),
        type=_text(item.get("type")),
        sha256=_text(item.get("sha256")),
    )


def _text(value: Any) -> str:
    """One printable line: a guest's escape sequences must not reach a terminal."""
    return "" if value is None else visible(str(value), MAX_WIDTH)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    return (item for item in _list(value) if isinstance(item, Mapping))
