"""``cuckoo plugin new``: a distribution for a machinery plugin of one's own.

The template beside this module is a plugin itself, called ``nameless``: it is linted and type
checked as it stands, and made somebody's own by putting another name in its place.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from cuckoo_api.fleet import load_plugins
from cuckoo_api.model.errors import BadInput, Conflict, CuckooError
from cuckoo_api.settings.init import CORE_FILES

TEMPLATE = Path(__file__).with_name("plugin_template")
PLACEHOLDER = "nameless"


def new(arguments: argparse.Namespace) -> int:
    """Write it, and say what comes next."""
    folder = write_plugin(arguments.name, Path(arguments.into))
    print(f"wrote {folder}")
    print("Its README.md says how to install and test it. Yours to write:")
    package = folder / "src" / f"cuckoo_machinery_{arguments.name}"
    print(f"  {package / 'backend.py'}")
    print(f"  {folder / 'tests' / 'test_conformance.py'}")
    return 0


def write_plugin(name: str, into: Path) -> Path:
    """The new folder ``cuckoo-machinery-NAME``; nothing that was there is touched.

    ``name`` is one that :func:`~cuckoo_api.cli.arguments.plugin_name` accepts. Raises BadInput
    for one that is taken, Conflict where the folder exists.
    """
    if f"{name}.conf" in CORE_FILES:
        raise BadInput(f"conf/{name}.conf is the server's own; choose another name")
    if name in load_plugins():
        raise BadInput(f"a machinery {name!r} is installed; choose another name")
    folder = into / f"cuckoo-machinery-{name}"
    try:
        folder.mkdir()
    except FileExistsError:
        raise Conflict(f"{folder} exists; nothing was written") from None
    except OSError as exc:
        raise CuckooError(f"{folder} cannot be made: {exc.strerror}") from exc
    try:
        _fill(folder, name)
    except OSError as exc:
        shutil.rmtree(folder, ignore_errors=True)  # made above: nobody else's
        raise CuckooError(f"{folder} cannot be written: {exc.strerror}") from exc
    return folder


def _fill(folder: Path, name: str) -> None:
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        target = folder / _named(str(source.relative_to(TEMPLATE)), name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_named(source.read_text(encoding="utf-8"), name), encoding="utf-8")


def _named(text: str, name: str) -> str:
    return text.replace(PLACEHOLDER, name).replace(PLACEHOLDER.capitalize(), name.capitalize())
