"""Runs compiled rules on open files; the matches in Cuckoo's shape."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yara_x

from cuckoo_api.reporting.bounds import Notes, clip, take
from cuckoo_api.reporting.evidence import Input
from cuckoo_api.reporting.processors.formats.words import text

FILE_SECONDS = 30
"""For one file: a slow rule must not take the time of all."""
MAX_RULES = 200
MAX_PATTERNS = 200
MAX_PLACES = 100
"""For each pattern of a rule."""
MAX_STRING = 256
MAX_META = 1_000


class Matcher:
    """The rules, and the time there is. ``deadline`` is one of the monotonic clock."""

    def __init__(self, rules: yara_x.Rules, deadline: float, notes: Notes) -> None:
        self._scanner = yara_x.Scanner(rules)
        self._scanner.max_matches_per_pattern(MAX_PLACES)
        self._deadline = deadline
        self._notes = notes

    def match(self, source: Input, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The matches in a file, which the report describes by ``entry``."""
        name = str(entry["name"])
        left = int(self._deadline - time.monotonic())
        if left < 1:
            self._notes.add("yara: the time was over before all files were looked at")
            return []
        self._scanner.set_timeout(min(left, FILE_SECONDS))
        self._set_externals(name, entry)
        try:
            found = self._scan(source, name)
        except yara_x.TimeoutError:
            self._notes.add(f"yara: looking at {clip(name, 200)!r} took too long")
            return []
        except yara_x.ScanError as exc:
            self._notes.add(f"yara: {clip(name, 200)!r} cannot be looked at: {clip(str(exc), 200)}")
            return []
        rules = take(found.matching_rules, MAX_RULES, self._notes, "yara")
        return [_match(rule, source) for rule in rules]

    def _scan(self, source: Input, name: str) -> yara_x.ScanResults:
        if source.truncated:
            self._notes.add(f"yara: only a part of {clip(name, 200)!r} was looked at")
            return self._scanner.scan(b"".join(source.chunks()))
        # by its descriptor: it is mapped, and not read into memory
        return self._scanner.scan_file(f"/proc/self/fd/{source.fileno()}")

    def _set_externals(self, name: str, entry: Mapping[str, Any]) -> None:
        dot = name.rpartition(".")
        self._scanner.set_global("filename", name)
        self._scanner.set_global("filepath", str(entry.get("filepath") or ""))
        self._scanner.set_global("extension", f".{dot[2]}" if dot[1] else "")
        self._scanner.set_global("filetype", str(entry.get("type") or ""))


def _match(rule: yara_x.Rule, source: Input) -> dict[str, Any]:
    strings: dict[bytes, int] = {}
    offsets: dict[str, list[list[int]]] = {}
    for identifier, offset, length in _places(rule):
        content = os.pread(source.fileno(), min(length, MAX_STRING), offset)
        number = strings.setdefault(content, len(strings))
        offsets.setdefault(identifier, []).append([offset, number])
    return {
        "name": text(rule.identifier),
        # clients take for granted that there is one
        "meta": {"description": "(no description)"} | {k: _value(v) for k, v in rule.metadata},
        "strings": [base64.b64encode(content).decode("ascii") for content in strings],
        "offsets": offsets,
        "tags": list(rule.tags),
        "file": text(rule.namespace),
    }


def _places(rule: yara_x.Rule) -> Iterator[tuple[str, int, int]]:
    for pattern in rule.patterns[:MAX_PATTERNS]:
        for match in pattern.matches[:MAX_PLACES]:
            yield pattern.identifier.removeprefix("$"), match.offset, match.length


def _value(value: Any) -> Any:
    return text(value, MAX_META) if isinstance(value, str | bytes) else value
