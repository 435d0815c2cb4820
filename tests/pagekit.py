"""Does what a page of the documentation tells its reader to do, word for word.

A fenced block is one of these:

- ``sh``: commands for the reader's terminal. They share one shell, as they do there, and each has
  to end well. After ``<!-- server -->`` the last of them goes on in a terminal of its own until the
  page is done with. What follows begins once it says that it is ready, or says the words of
  ``<!-- server: WORDS -->``.
- Anything else with a title: a file of that name.
- ``ini`` with a title: keys to be set in that file, and sections to be added.
- Anything else is to be looked at.
"""

from __future__ import annotations

import configparser
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cuckoo_api.settings.init import with_value

ROOT = Path(__file__).resolve().parents[1]
SERVER = "<!-- server -->"
READY = "server.ready"
PATIENCE = 120
"""Seconds for one block: the longest builds a guest's snapshot under emulation."""

_BLOCK = re.compile(
    r"^(?:<!-- (?P<server>server)(?:: (?P<ready>[^\n]+))? -->\n+)?"
    r"```(?P<language>\w+)(?: title=\"(?P<title>[^\"]*)\")?\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Step:
    """A fenced block that asks for something to be done."""

    line: int
    language: str
    title: str
    text: str
    server: bool
    ready: str = READY
    """What a server says once it is ready."""


def steps(page: str, section: str = "") -> list[Step]:
    """What a page, by its path in the project, asks for, in order; or what is below one heading."""
    whole = (ROOT / page).read_text(encoding="utf-8")
    begin, end = 0, len(whole)
    if section:
        heading = re.search(rf"^#+ {re.escape(section)}$", whole, re.MULTILINE)
        assert heading, section
        begin = heading.end()
        after = re.compile(r"^#+ ", re.MULTILINE).search(whole, begin)
        end = after.start() if after else end
    text = whole[begin:end]
    found = [
        Step(
            line=whole.count("\n", 0, begin + match.start()) + 1,
            language=match["language"],
            title=match["title"] or "",
            text=match["text"],
            server=bool(match["server"]),
            ready=match["ready"] or READY,
        )
        for match in _BLOCK.finditer(text)
    ]
    return [step for step in found if step.language == "sh" or step.title]


class Reader:
    """Somebody with a home and a folder to work in, who reads pages one after the other."""

    def __init__(
        self,
        folder: Path,
        *,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``inside`` begins each command: a namespace, say."""
        self.home = folder / "home"
        self.work = folder / "work"
        self.said = ""
        """What the commands have printed so far."""
        self._inside = list(inside)
        for made in (self.home, self.work):
            made.mkdir(parents=True)
        for name in ("Makefile", ".ci", "plugins", "src", "pyproject.toml"):
            (self.work / name).symlink_to(ROOT / name)
        (self.home / "apt.conf").write_text('APT::Get::Simulate "true";\n')
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            # what changes the machine is worked out, and not done: which commands make runs, which
            # packages Debian's index has, and that what pip is given can be built
            "MAKEFLAGS": "n",
            "APT_CONFIG": str(self.home / "apt.conf"),
            **{f"PIP_{word}": "1" for word in ("DRY_RUN", "NO_DEPS", "NO_INDEX")},
            "PIP_NO_BUILD_ISOLATION": "0",  # which means yes: the option is its opposite
            **(environment or {}),
        }
        # a namespace that is entered may begin in another folder
        self._prologue = f"set -eu; cd {shlex.quote(str(self.work))}\n"
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._shell = self._bash(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._give(self._prologue)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in reversed(self._servers):
            self.stop(server)
        self._end(self._shell)

    def follow(self, page: str, section: str = "") -> None:
        """Do all that the page says, or what it says below one heading."""
        for step in steps(page, section):
            self.do(page, step)

    def do(self, page: str, step: Step) -> None:
        """Do one step; what fails is told with its place in the page."""
        where = f"{page}:{step.line}"
        if step.language == "ini":
            self._configure(self._path(step.title), step.text)
        elif step.title:
            self._path(step.title).write_text(step.text)
        elif step.server:
            self._serve(where, step)
        else:
            self._run(where, step.text)

    def stop(self, server: subprocess.Popen[bytes]) -> None:
        """Press Ctrl-C, and wait."""
        self._servers.remove(server)
        self._end(server, signal.SIGINT)

    @property
    def server(self) -> subprocess.Popen[bytes]:
        """What was started last."""
        return self._servers[-1]

    # -- commands -------------------------------------------------------------------------------

    def _bash(
        self, *words: str, stdin: int = subprocess.DEVNULL, stdout: int | IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._inside, "bash", "--norc", "--noprofile", *words],
            env=self._environment,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _run(self, where: str, text: str) -> None:
        mark = f"--- {where} is done"
        self._give(f"{{\n{text}}} < /dev/null\necho '{mark}'")
        said = "".join(_lines(self._shell, mark))
        self.said += said
        assert self._shell.poll() is None, f"{where} failed:\n{said}"

    def _serve(self, where: str, step: Step) -> None:
        log = self.home / f"server-{len(self._servers)}.log"
        with log.open("wb") as file:
            server = self._bash("-c", self._prologue + step.text, stdout=file)
        self._servers.append(server)
        deadline = time.monotonic() + PATIENCE
        while step.ready not in (said := log.read_text(errors="replace")):
            assert server.poll() is None, f"{where} did not start:\n{said}"
            assert time.monotonic() < deadline, f"{where} is not ready:\n{said}"
            time.sleep(0.02)

    def _give(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{text}\n".encode())
        self._shell.stdin.flush()

    def _end(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        if process.poll() is None:
            os.killpg(process.pid, number)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait(60)

    # -- files ----------------------------------------------------------------------------------

    def _path(self, title: str) -> Path:
        path = Path(self.home, title[2:]) if title.startswith("~/") else Path(self.work, title)
        assert path.resolve().is_relative_to(self.home.parent.resolve()), title
        return path

    @staticmethod
    def _configure(path: Path, text: str) -> None:
        """Set keys where the section is there, also in a comment; else append it."""
        asked = configparser.RawConfigParser()
        asked.read_string(text)
        now = path.read_text()
        for section in asked.sections():
            if not re.search(rf"^\[{re.escape(section)}\]", now, re.MULTILINE):
                now += f"\n[{section}]\n"
                now += "".join(f"{key} = {value}\n" for key, value in asked.items(section))
                continue
            for key, value in asked.items(section):
                now = with_value(now, section, key, value)
        path.write_text(now)


def _lines(process: subprocess.Popen[bytes], until: str) -> Iterator[str]:
    """What a process prints, to the line that has ``until`` in it, or to its end."""
    assert process.stdout is not None
    handle, rest = process.stdout.fileno(), b""
    deadline = time.monotonic() + PATIENCE
    while True:
        left = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([handle], [], [], left)
        assert ready, f"nothing came of it in {PATIENCE} s; the last was {rest!r}"
        new = os.read(handle, 1 << 16)
        *whole, rest = (rest + new).split(b"\n")
        for line in whole if new else [*whole, rest]:
            shown = line.decode(errors="replace")
            yield f"{shown}\n"
            if until in shown:
                return
        if not new:
            process.wait()
            return
