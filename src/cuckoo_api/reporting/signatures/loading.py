"""Signatures from elsewhere: files of the working directory, and installed packages."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from inspect import isabstract
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from cuckoo_api.reporting.bounds import Notes, clip, take
from cuckoo_api.reporting.signatures.alarm import time_limit
from cuckoo_api.reporting.signatures.base import Signature

FOLDER = "signatures"
GROUP = "cuckoo_api.signatures"
SECONDS = 10
"""For one file or package."""
MAX_FILES = 1_000

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TECHNIQUE = re.compile(r"T[0-9]{4}(?:\.[0-9]{3})?")

Load = Callable[[], object]


def load_signatures(
    cwd: Path, taken: tuple[type[Signature], ...], notes: Notes
) -> list[type[Signature]]:
    """The signatures of ``cwd/signatures/*.py`` and of the entry points ``cuckoo_api.signatures``.

    What cannot be loaded, is no signature or has a name that is taken is left out, with a note
    that names it.
    """
    names = {kind.name for kind in taken}
    found: list[type[Signature]] = []
    for source, load in (*_files(cwd / FOLDER, notes), *_points()):
        try:
            with time_limit(SECONDS):
                loaded = load()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a stranger's code raises what it likes
            notes.add(f"{source} was left out: {type(exc).__name__}: {clip(str(exc), 300)}")
            continue
        kinds = classes_of(loaded)
        if not kinds:
            notes.add(f"{source} was left out: it has no signature")
        for kind in kinds:
            fault = _fault(kind, names)
            if fault:
                notes.add(f"{source}: the signature {kind.__name__} was left out: {fault}")
                continue
            names.add(kind.name)
            found.append(kind)
    return found


def classes_of(loaded: object) -> list[type[Signature]]:
    """A class itself; of a module the signatures that it defines, in their order.

    Abstract classes and those whose name begins with an underscore are made to be inherited from.
    """
    if not isinstance(loaded, ModuleType):
        return [loaded] if _is_signature(loaded) else []
    return [
        kind
        for name, kind in vars(loaded).items()
        if _is_signature(kind) and kind.__module__ == loaded.__name__ and name[0] != "_"
    ]


def _is_signature(item: object) -> TypeGuard[type[Signature]]:
    return isinstance(item, type) and issubclass(item, Signature) and not isabstract(item)


def _files(folder: Path, notes: Notes) -> Iterator[tuple[str, Load]]:
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    for path in take(paths, MAX_FILES, notes, FOLDER):
        yield f"{FOLDER}/{path.name}", partial(_module, path)


def _points() -> Iterator[tuple[str, Load]]:
    # sorted: which of two keeps a name must not depend on the order of a directory
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        yield f"{point.name} ({point.value})", point.load


def _module(path: Path) -> ModuleType:
    name = f"cuckoo_signatures_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _fault(kind: type[Signature], names: set[str]) -> str:
    """What is wrong with a signature's own words; empty when nothing is."""
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"its name is {name!r:.100}; allowed: small letters, digits and _"
    if name in names:
        return f"another signature is called {name!r}"
    description = getattr(kind, "description", None)
    if not isinstance(description, str) or not description:
        return "it has no description"
    severity = getattr(kind, "severity", None)
    if severity not in (1, 2, 3):
        return f"its severity is {severity!r:.100}; allowed: 1, 2, 3"
    techniques: object = kind.ttp
    for technique in techniques if isinstance(techniques, tuple | list) else (techniques,):
        if not _TECHNIQUE.fullmatch(str(technique)):
            return f"its ttp has {technique!r:.100}; allowed: such as 'T1105' and 'T1053.003'"
    return ""
