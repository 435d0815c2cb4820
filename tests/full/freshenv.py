"""A virtual environment as a stranger has it: what the project declares, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
BUILDER = ("hatchling", "editables")
"""What builds the packages, and what it needs for ``pip install --editable``."""


class FreshEnvironment:
    """Made of the running one's packages, without asking an index for anything."""

    def __init__(self, folder: Path, base: str = sys.executable) -> None:
        """``base``: another Python of the same version, to make it with."""
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        self.cuckoo = (self.python, "-m", "cuckoo_api")
        run(base, "-m", "venv", "--without-pip", str(folder))
        self._shared = folder / "shared"
        self._shared.mkdir()
        self._bring([*declared(ROOT, "testing"), *BUILDER])
        [site] = folder.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(f"{self._shared}\n")

    def add(self, name: str) -> None:
        """As ``pip install NAME`` does: a package of the running one with its programs."""
        self._bring([name])
        for entry in distribution(name).entry_points.select(group="console_scripts"):
            program = self.folder / "bin" / entry.name
            program.write_text(
                f"#!{self.python}\nfrom {entry.module} import {entry.attr}\n{entry.attr}()\n"
            )
            program.chmod(0o755)

    def _bring(self, lines: Iterable[str]) -> None:
        for name in needed(lines):
            link(distribution(name), self._shared)

    def install(self, *words: str) -> None:
        """Build and install with pip; what is missing is an error."""
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        run(*pip, "install", "--quiet", "--no-index", "--no-build-isolation", *words)


def run(*command: str) -> str:
    """A command's output; all of it when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def declared(package: Path, *extras: str) -> list[str]:
    """What the package in this folder says that it depends on."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines: list[str] = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return lines


def needed(lines: Iterable[str]) -> set[str]:
    """The distributions that these requirements come to, directly or not."""
    waiting = [Requirement(line) for line in lines]
    seen: dict[str, set[str]] = {}
    while waiting:
        wanted = waiting.pop()
        extras = seen.setdefault(wanted.name, set())
        if extras >= {"", *wanted.extras}:
            continue
        extras |= {"", *wanted.extras}
        waiting += [
            more
            for more in map(Requirement, distribution(wanted.name).requires or ())
            if more.marker is None or any(more.marker.evaluate({"extra": e}) for e in extras)
        ]
    return set(seen)


def link(package: Distribution, folder: Path) -> None:
    """Bring a package in. No symbolic links: a worker process may follow none out of here."""
    tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
    for top in tops:
        source, target = Path(str(package.locate_file(top))), folder / top
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_same, dirs_exist_ok=True)
        elif not target.exists():
            _same(str(source), str(target))


def _same(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # of a namespace that several packages share
    except OSError:  # another file system
        shutil.copy2(source, target)
