"""The simulator: built once from Debian's sources, and one process of it."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("CUCKOO_TEST_CACHE") or Path.home() / ".cache" / "cuckoo-tests")
SOURCES = Path(__file__).with_name("vcsim")
GOPATH = Path("/usr/share/gocode")
GOVMOMI = Path("src/github.com/vmware/govmomi")
START_TIMEOUT = 30


def build() -> Path:
    """The program; built when its sources are others than those of the one that is there."""
    for needed in (Path("/usr/bin/go"), Path("/usr/bin/patch"), GOPATH / GOVMOMI):
        assert needed.exists(), f"{needed} is missing: install the packages of .ci/packages-test"
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    for package in ("golang-go", "golang-github-vmware-govmomi-dev"):
        digest.update(_run("dpkg-query", "-W", "-f=${Version}", package))
    folder = CACHE / "vcsim"
    program = folder / digest.hexdigest()[:16]
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = _compile(Path(work), folder / "go-build")
            built.replace(program)  # two that build at once do no harm
    return program


def _compile(work: Path, cache: Path) -> Path:
    shutil.copytree(GOPATH / GOVMOMI, work / GOVMOMI)
    [patch] = SOURCES.glob("*.patch")
    _run("patch", "-s", "-p1", "-i", str(patch), cwd=work / GOVMOMI)
    environment = {
        "PATH": "/usr/bin:/bin",
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
        "GOPATH": f"{work}:{GOPATH}",
        "GOCACHE": str(cache),
    }
    target = work / "program"
    words = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(target), "."]
    _run(*words, cwd=SOURCES, env=environment)
    return target


def _run(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.decode()}"
    return done.stdout


class Simulator:
    """One process. It ends with this one, however this one ends: its input closes."""

    def __init__(self, program: Path, *words: str) -> None:
        self._process = subprocess.Popen(
            [program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT)
        assert ready, "vcsim did not start"
        self.port = int(self._answer()["port"])

    def order(self, do: str, name: str = "", **more: Any) -> Any:
        """See control.go."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "name": name, **more}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def calls(self) -> dict[str, int]:
        """How often each method was called since this was asked the last time."""
        answer: dict[str, int] = self.order("calls")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"vcsim ended: {self._process.wait(5)}"
        return json.loads(line)
