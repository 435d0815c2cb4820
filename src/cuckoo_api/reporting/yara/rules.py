"""The YARA rules of ``conf/yara/``: compiled afresh for each report, so that a change counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yara_x

from cuckoo_api.reporting.bounds import Notes, clip, take

SUFFIXES = frozenset({".yar", ".yara"})
MAX_FILES = 5_000
MAX_FILE = 16 << 20
MAX_ERRORS = 20
"""Of one file; a file of another kind has one in every line."""

EXTERNALS: Mapping[str, str] = {"filename": "", "filepath": "", "extension": "", "filetype": ""}
"""Variables that a rule may use: they are set for each file that is looked at."""

_RULE = re.compile(rb"^[ \t]*(?:(?:private|global)[ \t]+)*rule[ \t]+(\w+)", re.MULTILINE)


def load_rules(folder: Path, notes: Notes) -> yara_x.Rules | None:
    """All rules in a folder and its subfolders; None when there are none.

    Each file has a namespace of its own, its path. A rule that is broken is left out, with a note
    that names it; the rest of its file counts.
    """
    compiler = yara_x.Compiler(relaxed_re_syntax=True)
    compiler.add_include_dir(str(folder))
    for name, value in EXTERNALS.items():
        compiler.define_global(name, value)
    known = 0
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in take(paths, MAX_FILES, notes, "conf/yara"):
        name = str(path.relative_to(folder))
        source = _source(path, name, notes)
        compiler.new_namespace(name)
        try:
            compiler.add_source(source.decode("utf-8", "replace"), origin=name)
        except yara_x.CompileError:
            errors = compiler.errors()
            _note_errors(name, source, errors[known:], notes)
            known = len(errors)
    rules = compiler.build()
    return rules if any(True for _ in rules) else None


def _source(path: Path, name: str, notes: Notes) -> bytes:
    try:
        with path.open("rb") as file:
            source = file.read(MAX_FILE + 1)
    except OSError as exc:
        notes.add(f"conf/yara/{name} cannot be read: {exc.strerror or exc}")
        return b""
    if len(source) > MAX_FILE:
        notes.add(f"conf/yara/{name} was left out: it is larger than {MAX_FILE} bytes")
        return b""
    return source


def _note_errors(name: str, source: bytes, errors: list[dict[str, Any]], notes: Notes) -> None:
    seen: set[str] = set()
    for error in errors:
        start = next((label["span"]["start"] for label in error["labels"]), 0)
        earlier = list(_RULE.finditer(source, 0, start))
        rule = earlier[-1][1].decode() if earlier else ""
        if rule in seen:
            continue  # one error has others follow
        if len(seen) >= MAX_ERRORS:
            notes.add(f"conf/yara/{name} has more broken rules")
            return
        seen.add(rule)
        what = f"the rule {rule} was left out" if rule else "a part was left out"
        why = (
            f"{error['title']}: {error['labels'][0]['text']}" if error["labels"] else error["title"]
        )
        notes.add(f"conf/yara/{name}:{error.get('line', 0)}: {what}: {clip(why, 300)}")
