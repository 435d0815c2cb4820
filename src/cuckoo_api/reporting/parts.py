"""What the steps have made so far: each part of the report in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class Parts:
    """The folder that a report's worker was given for the parts."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def keep(self, name: str, section: Any) -> None:
        """Write a part beside and rename: one that is half written does not exist."""
        path = self._path(name)
        beside = path.with_suffix(".part")
        beside.write_bytes(msgspec.json.encode(section))
        beside.replace(path)

    def raw(self, name: str, instead: Any) -> bytes:
        """A part as JSON; ``instead`` for one that was never made."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return msgspec.json.encode(instead)

    def read(self, name: str) -> Any:
        """A part; None where it was never made."""
        return msgspec.json.decode(self.raw(name, None))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
