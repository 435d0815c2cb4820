"""The example of docs/machinery.md as a package, filled in as a reader of the page does it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "machinery.md"
SHOWN = re.compile(r'^```\w+ title="((?:src|tests)/[^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def fill_in(package: Path) -> Path:
    """Put the files that the page shows into what ``cuckoo plugin new folder`` wrote."""
    shown = SHOWN.findall(PAGE.read_text(encoding="utf-8"))
    assert len(shown) == 4
    for name, text in shown:
        assert (package / name).is_file(), f"the template has no {name}"
        (package / name).write_text(text, encoding="utf-8")
    return package
