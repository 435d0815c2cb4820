"""A server without an engine, and the command line as its user types it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.cli.main import main
from cuckoo_api.store import Store


@dataclass(frozen=True)
class Shown:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which is JSON and nothing else."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Terminal:
    """Types commands for one working directory."""

    cwd: Path
    store: Store
    """The server's own, to bring tasks where no engine brings them."""
    capsys: pytest.CaptureFixture[str]

    async def run(self, *words: object) -> Shown:
        """Run ``cuckoo`` with these words."""
        line = ["--cwd", str(self.cwd), *map(str, words)]
        self.capsys.readouterr()
        code = await asyncio.to_thread(main, line)
        out, err = self.capsys.readouterr()
        return Shown(code, out, err)
