"""What goes to standard output is the command's answer, and nothing else: a program may read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cuckoo_api.fleet import load_plugins

pytestmark = pytest.mark.slow


def test_a_command_prints_its_answer_and_no_log(tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    done = subprocess.run(
        [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd), "init"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    names = [f"{name}.conf" for name in ("cuckoo", "routing", "tokens", *load_plugins())]
    written = [f"wrote {cwd}/conf/{name}" for name in (*names, "yara/starter.yar")]
    assert done.stdout.splitlines() == [*written, f"{cwd} is ready."]
    assert done.stderr == ""
