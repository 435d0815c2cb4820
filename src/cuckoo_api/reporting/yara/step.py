"""The step that runs the rules on what the analysis left: its matches go into the other parts.

It is a step of its own, so that a rule which breaks the scanner costs the matches, and neither the
hashes nor the list of the files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence, Input
from cuckoo_api.reporting.parts import Parts

FOLDER = "conf/yara"
SHARE = 0.8
"""Of the step's time: what is left is for writing down what was found until then."""

Opened = AbstractContextManager[Input]


def add_matches(evidence: Evidence, parts: Parts, cwd: Path, seconds: int, notes: Notes) -> None:
    """Fill in ``yara`` of the target, of each dropped file and of each dump of a process."""
    if not (cwd / FOLDER).is_dir():
        return
    deadline = time.monotonic() + seconds * SHARE
    # only here: a server without rules does not wait for the engine to load
    from cuckoo_api.reporting.yara.rules import load_rules
    from cuckoo_api.reporting.yara.scan import Matcher

    rules = load_rules(cwd / FOLDER, notes)
    if rules is None:
        return
    matcher = Matcher(rules, deadline, notes)
    for name in ("target", "dropped", "procmemory"):
        part = parts.read(name)
        if not part:
            continue
        for entry, opened in _files(name, part, evidence):
            try:
                with opened as source:
                    entry["yara"] = matcher.match(source, entry)
            except OSError as exc:
                notes.add(f"yara: {entry['name']!r:.200} cannot be read: {exc.strerror or exc}")
        parts.keep(name, part)


def _files(name: str, part: Any, evidence: Evidence) -> Iterator[tuple[dict[str, Any], Opened]]:
    """A part's entries for files, and how to open each."""
    if name == "target":
        if "file" in part:
            yield part["file"], evidence.sample()
        return
    for entry in part:
        yield entry, evidence.open(entry["path"] if name == "dropped" else entry["file"])
