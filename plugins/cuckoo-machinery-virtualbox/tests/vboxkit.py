"""A program in VBoxManage's place, and who answers it: a stand-in, or a replay of the real one."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cuckoo_api.machinery import BackendConfig, MachineConfig

# bash alone, for speed: the words go to the answerer, what it says comes back
_PROGRAM = r"""#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\0' "$@" >&3
printf '\0' >&3
IFS= read -r -d '' out <&3
IFS= read -r -d '' err <&3
read -r code <&3
printf %s "$out"
printf %s "$err" >&2
exit "$code"
"""
SNAPSHOT = "clean"


@dataclass(frozen=True)
class Answer:
    """What a command prints, and how it ends."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0


class Program:
    """``folder/VBoxManage``: each of its runs is answered by a thread of this process."""

    def __init__(self, folder: Path, answer: Callable[[Sequence[str]], Answer]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words: list[str] = []
                word = b""
                while (byte := self.rfile.read(1)) != b"" and (byte != b"\0" or word):
                    word += byte
                    if byte == b"\0":
                        words.append(word[:-1].decode())
                        word = b""
                said = answer(words)
                text = f"{said.stdout}\0{said.stderr}\0{said.code}\n"
                try:
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # it was killed, as one that takes too long is

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.path = folder / "VBoxManage"
        self.path.write_text(_PROGRAM.replace("{port}", str(self._server.server_address[1])))
        self.path.chmod(0o755)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def config_for(program: Path, state_dir: Path, *labels: str) -> BackendConfig:
    """A configuration of these machines."""
    machines = tuple(MachineConfig(label=label, name=label, snapshot=SNAPSHOT) for label in labels)
    options = {"path": str(program), "mode": "headless"}
    return BackendConfig("virtualbox", machines, state_dir, options)


# -- replay ---------------------------------------------------------------------------------------


def _recorded() -> dict[str, dict[str, Any]]:
    text = (Path(__file__).parent / "transcripts.jsonl").read_text(encoding="utf-8")
    return {record["name"]: record for record in map(json.loads, text.splitlines())}


RECORDED = _recorded()
"""What the real VBoxManage was asked and answered, by the recordings' names."""
WIN7 = "dd29bcc1-596a-4c2c-8a2f-66f74cacea58"
NAMES = {
    WIN7: "win7x64",
    "2f221567-5412-4ee6-b46f-679397e59407": "clean",
    "5caaf05d-379f-4d91-9372-2ea84d2d79c9": "second",
}
"""UUIDs in the recordings, and what has them there."""


class Replay:
    """Answers commands as the real one did, in the order of the play; refuses any other command.

    The recordings name the machine and its snapshots. VBoxManage takes a UUID in a name's
    place, and so does the replay.
    """

    def __init__(self, *names: str) -> None:
        self.left = list(names)
        self.surprises: list[str] = []

    def answer(self, words: Sequence[str]) -> Answer:
        """The next recording, if that is what is asked."""
        names = [NAMES.get(word, word) for word in words]
        command = " ".join(["VBoxManage", *names])
        expected = RECORDED[self.left[0]] if self.left else {"cmd": ""}
        # a note in parentheses says how one was recorded
        if command != expected["cmd"].partition(" (")[0]:
            self.surprises.append(f"{command!r} came, where {expected['cmd']!r} was recorded")
            return Answer("", f"VBoxManage: error: {self.surprises[-1]}\n", 99)
        self.left.pop(0)
        return Answer(expected["stdout"], expected["stderr"], expected["rc"])
