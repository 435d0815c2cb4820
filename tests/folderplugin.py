"""The example of docs/machinery.md as a package, made as a reader of the page makes it."""

from __future__ import annotations

import re
from pathlib import Path

from cuckoo_api.cli.plugin import write_plugin

PAGE = Path(__file__).parents[1] / "docs" / "machinery.md"
SHOWN = re.compile(r'^```\w+ title="((?:src|tests)/[^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def write_folder_plugin(into: Path) -> Path:
    """The template, with the files in place that the page shows; the package's folder."""
    folder = write_plugin("folder", into)
    shown = SHOWN.findall(PAGE.read_text(encoding="utf-8"))
    assert len(shown) == 4
    for name, text in shown:
        assert (folder / name).is_file(), f"the template has no {name}"
        (folder / name).write_text(text, encoding="utf-8")
    return folder
