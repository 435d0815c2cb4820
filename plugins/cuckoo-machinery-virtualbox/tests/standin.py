"""A stand-in for VirtualBox, not VirtualBox: machines in memory, answers in its recorded formats.

It runs no guest. A running machine is a process that holds its log open and does nothing. What the
backend does with the real program is tried in tests/real; this serves the conformance suite where
the real one is not.
"""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vboxkit import SNAPSHOT, Answer

ENDING = 0.1
"""Seconds for which a session outlives the power."""
PNG = b"\x89PNG\r\n\x1a\n"
PCAP = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000")
ONLINE = ("running", "paused")
BAD_STATE, NOT_FOUND = "VBOX_E_INVALID_VM_STATE", "VBOX_E_OBJECT_NOT_FOUND"


class Refused(Exception):
    """A command that fails: VBoxManage's text, and its code where there is one."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        details = f"VBoxManage: error: Details: code {code} (0x80bb0000), component MachineWrap\n"
        self.answer = Answer("", f"VBoxManage: error: {text}\n{details if code else ''}", 1)


@dataclass
class Snapshot:
    name: str
    mark: str = ""
    live: bool = False
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass
class Machine:
    name: str
    folder: Path
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    word: str = "poweroff"
    since: float = 0
    session_until: float = 0
    process: subprocess.Popen[bytes] | None = None
    mark: str = ""
    snapshots: list[Snapshot] = field(default_factory=lambda: [Snapshot(SNAPSHOT)])
    trace: Path = Path()

    def __post_init__(self) -> None:
        self.log = self.folder / "Logs" / "VBox.log"
        self.log.parent.mkdir(parents=True)
        self.current = self.snapshots[0]

    @property
    def session(self) -> bool:
        return self.process is not None or time.time() < self.session_until

    def enter(self, word: str) -> None:
        self.word, self.since = word, time.time()
        with self.log.open("a") as log:
            log.write(f"Changing the VM state to {word}\n")

    def look(self) -> None:
        """See whether its process was ended from outside."""
        if self.process is not None and self.process.poll() is not None:
            self.end("aborted")

    def end(self, word: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process = None
        self.enter(word)

    def find(self, name: str) -> Snapshot:
        for snapshot in self.snapshots:
            if name in (snapshot.name, snapshot.uuid):
                return snapshot
        raise Refused(f"Could not find a snapshot named '{name}'", NOT_FOUND)


class StandIn:
    """The machines, each off and with a snapshot, and the answers to VBoxManage's commands."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.machines = {name: Machine(name, folder / name) for name in names}
        self.down = False
        """Whether to answer as VBoxManage does where VBoxSVC was killed."""
        self.commands: list[Sequence[str]] = []
        """What it was asked."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """End every process."""
        for machine in self.machines.values():
            if machine.process is not None:
                machine.end("poweroff")

    def answer(self, words: Sequence[str]) -> Answer:
        """One command."""
        self.commands.append(words)
        if self.down:
            return Answer("", "VBoxManage: error: Failed to create the VirtualBox object!\n", 1)
        with self._lock:
            try:
                for machine in self.machines.values():
                    machine.look()
                return Answer(self._run(*words))
            except Refused as exc:
                return exc.answer

    def _run(self, command: str, *words: str) -> str:
        if command == "list":
            return self._list(*words)
        for machine in self.machines.values():
            if words[0] in (machine.name, machine.uuid):
                return str(getattr(self, f"_{command}")(machine, *words[1:]))
        raise Refused(f"Could not find a registered machine named '{words[0]}'", NOT_FOUND)

    def _list(self, what: str, *rest: str) -> str:
        if what == "hostonlyifs":
            return "Name:            vboxnet0\nGUID:            786f6276-656e-4074\n"
        if rest:
            return "\n".join(_long(machine) for machine in self.machines.values())
        return "".join(f'"{m.name}" {{{m.uuid}}}\n' for m in self.machines.values())

    def _showvminfo(self, machine: Machine, _option: str) -> str:
        lines = [
            f'name="{machine.name}"\nostype="Windows 7 (64-bit)"\nUUID="{machine.uuid}"',
            f'CfgFile="{machine.folder}/a.vbox"\nLogFldr="{machine.log.parent}"',
            f'VMState="{machine.word}"\nVMStateChangeTime="{machine.since}"',
            'hostonlyadapter1="vboxnet0"\nnic1="hostonly"',
            'SessionName="headless"' if machine.session else "",
        ]
        for depth, snapshot in enumerate(machine.snapshots):
            lines.append(f'SnapshotName{"-1" * depth}="{snapshot.name}"')
            lines.append(f'SnapshotUUID{"-1" * depth}="{snapshot.uuid}"')
        return "\n".join([*lines, f'CurrentSnapshotUUID="{machine.current.uuid}"'])

    def _startvm(self, machine: Machine, _option: str, _mode: str) -> str:
        if machine.session:
            text = f"The machine '{machine.name}' is already locked by a session"
            raise Refused(text, "VBOX_E_INVALID_OBJECT_STATE")
        with machine.log.open("wb") as log:
            machine.process = subprocess.Popen(
                # until it is killed, or this process is no more
                ["sh", "-c", "read nothing", "VBoxHeadless", "--startvm", machine.uuid],
                stdin=subprocess.PIPE,
                stdout=log,
            )
        machine.enter("running")
        return f'VM "{machine.name}" has been successfully started.\n'

    def _controlvm(self, machine: Machine, order: str, *rest: str) -> str:
        _need_online(machine)
        match order, *rest:
            case ["poweroff"]:
                machine.end("poweroff")
                machine.session_until = time.time() + ENDING
            case ["pause"]:
                if machine.word == "paused":
                    raise Refused("Already paused", BAD_STATE)
                machine.enter("paused")
            case ["resume"]:
                if machine.word == "running":
                    raise Refused("Cannot resume the machine as it is not paused", BAD_STATE)
                machine.enter("running")
            case ["screenshotpng", path]:
                Path(path).write_bytes(PNG)
            case ["nictracefile1", path]:
                machine.trace = Path(path)
            case ["nictrace1", "on"]:
                machine.trace.write_bytes(PCAP)
            case ["nictrace1", "off"] | ["reset"]:
                pass
            case _:
                raise Refused(f"Invalid parameter '{order}'")
        return ""

    def _debugvm(self, machine: Machine, _order: str, _option: str, path: str) -> str:
        _need_online(machine)
        if Path(path).exists():
            raise Refused("DBGFR3CoreWrite failed with VERR_ALREADY_EXISTS", "NS_ERROR_FAILURE")
        Path(path).write_bytes(b"\x7fELF")
        return ""

    def _discardstate(self, machine: Machine) -> str:
        machine.enter("poweroff")
        return ""

    def _snapshot(self, machine: Machine, order: str, name: str) -> str:
        if order == "take":
            machine.current = Snapshot(name, machine.mark, live=machine.word in ONLINE)
            machine.snapshots.append(machine.current)
            return f"Snapshot taken. UUID: {machine.current.uuid}\n"
        found = machine.find(name)
        if order == "delete":
            machine.snapshots.remove(found)
            return ""
        if machine.word in ONLINE:
            raise Refused("Cannot delete the current state of the running machine", BAD_STATE)
        machine.mark, machine.current = found.mark, found
        machine.enter("saved" if found.live else "poweroff")
        return f"Restoring snapshot '{found.name}' ({found.uuid})\n"


def _need_online(machine: Machine) -> None:
    if machine.word not in ONLINE:
        raise Refused(f"Machine '{machine.name}' is not currently running.")


def _long(machine: Machine) -> str:
    word = {"poweroff": "powered off"}.get(machine.word, machine.word)
    lines = [
        f"Name:                        {machine.name}",
        f"UUID:                        {machine.uuid}",
        f"Config file:                 {machine.folder}/a.vbox",
        f"Log folder:                  {machine.log.parent}",
        f"State:                       {word} (since {machine.since})",
    ]
    return (
        "\n".join([*lines, *(["Session name:                headless"] * machine.session)]) + "\n"
    )
