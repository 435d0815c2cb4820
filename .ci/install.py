"""Install into a tox environment, as pip does, but quicker: ``python .ci/install.py ARGUMENTS``.

pip fetches a build backend anew for each package of this repository and each environment. Here
the backend is installed once, and used for all that is given with ``-e``.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path


def main(arguments: list[str]) -> None:
    ours, others = [], []
    words = iter(arguments)
    for word in words:
        if word == "-e":
            ours.append(Path(next(words)))
        else:
            others.append(word)
    if ours:
        editables = [word for path in ours for word in ("-e", str(path))]
        pip("hatchling>=1.26", "editables>=0.5")
        pip("--no-build-isolation", "--no-deps", *editables)
    pip(*others, *(name_of(path) for path in ours))  # their dependencies


def pip(*arguments: str) -> None:
    command = [sys.executable, "-I", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def name_of(path: Path) -> str:
    """The distribution's name."""
    name: str = tomllib.loads((path / "pyproject.toml").read_text())["project"]["name"]
    return name


if __name__ == "__main__":
    main(sys.argv[1:])
