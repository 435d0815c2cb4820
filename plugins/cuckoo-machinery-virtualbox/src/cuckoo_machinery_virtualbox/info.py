"""What VBoxManage prints, read.

Of a key that comes twice the first counts: what a guest can say of itself is printed last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cuckoo_api.machinery import MachineState, SnapshotNotFound

_PAIR = re.compile(r'"?([^"=]+)"?="?(.*?)"?')
_LISTED = re.compile(r'"(.*)" \{([0-9a-f-]{36})\}')
_BLOCK = re.compile(r"^Name: {6,}", re.MULTILINE)
_STATE = re.compile(r"(.+?)(?: \(since ([^)]*)\))?")
_SNAPSHOT = re.compile(r"SnapshotName((?:-\d+)*)")
INACCESSIBLE = "<inaccessible>"

# Those of which something is alive are running: who believes them to be off would leave them so.
STATES = {
    "poweroff": MachineState.POWEROFF,
    "teleported": MachineState.POWEROFF,
    "settingup": MachineState.POWEROFF,
    "snapshotting": MachineState.POWEROFF,
    "deletingsnapshot": MachineState.POWEROFF,
    "restoringsnapshot": MachineState.POWEROFF,
    "saved": MachineState.SAVED,
    "aborted": MachineState.ABORTED,
    "aborted-saved": MachineState.ABORTED,
    "gurumeditation": MachineState.ABORTED,
    "running": MachineState.RUNNING,
    "starting": MachineState.RUNNING,
    "restoring": MachineState.RUNNING,
    "stopping": MachineState.RUNNING,
    "saving": MachineState.RUNNING,
    "teleporting": MachineState.RUNNING,
    "livesnapshotting": MachineState.RUNNING,
    "onlinesnapshotting": MachineState.RUNNING,
    "deletingsnapshotlive": MachineState.RUNNING,
    "paused": MachineState.PAUSED,
    "teleportingpausedvm": MachineState.PAUSED,
    "deletingsnapshotlivepaused": MachineState.PAUSED,
}
"""VirtualBox's words. A machine in guru meditation has crashed; its process is still there."""
_LONG = {"poweredoff": "poweroff"}
_PLATFORMS = (
    ("windows", r"windows"),
    ("darwin", r"mac os|macos"),
    (
        "linux",
        r"linux|ubuntu|debian|fedora|red hat|suse|mandriva|mageia|gentoo|xandros|turbolinux",
    ),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One of a machine's; names may repeat."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """One machine as VirtualBox has it now."""

    name: str
    uuid: str
    word: str
    """VirtualBox's word for its state."""
    since: str
    """When that began."""
    session: str
    """What has it open: empty when nothing has."""
    config: Path
    logs: Path
    ostype: str = ""
    hostonly: tuple[str, ...] = ()
    """The host-only interfaces that its network cards are on."""
    snapshots: tuple[Snapshot, ...] = ()
    current: str = ""
    """The UUID of its current snapshot."""

    @property
    def platform(self) -> str:
        """``windows``, ``linux``, ``darwin``, or empty."""
        found = [name for name, words in _PLATFORMS if re.search(words, self.ostype.lower())]
        return found[0] if found else ""


def pairs(text: str) -> dict[str, str]:
    """The lines ``key="value"``; others are left out, such as the warnings of a wrapper."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _PAIR.fullmatch(line):
            found.setdefault(match[1], re.sub(r"\\(.)", r"\1", match[2]))
    return found


def shown(text: str) -> MachineInfo:
    """The answer to ``showvminfo --machinereadable``."""
    found = pairs(text)
    snapshots = tuple(
        Snapshot(name, found.get(f"SnapshotUUID{match[1]}", ""))
        for key, name in found.items()
        if (match := _SNAPSHOT.fullmatch(key))
    )
    cards = (key.removeprefix("hostonlyadapter") for key in found if "hostonlyadapter" in key)
    return MachineInfo(
        name=found.get("name", ""),
        uuid=found.get("UUID", ""),
        word=found.get("VMState", ""),
        since=found.get("VMStateChangeTime", ""),
        session=found.get("SessionName", ""),
        config=Path(found.get("CfgFile", "")),
        logs=Path(found.get("LogFldr", "")),
        ostype=found.get("ostype", ""),
        hostonly=tuple(
            found[f"hostonlyadapter{n}"] for n in cards if found.get(f"nic{n}") == "hostonly"
        ),
        snapshots=snapshots,
        current=found.get("CurrentSnapshotUUID", ""),
    )


def listed(text: str) -> list[tuple[str, str]]:
    """Name and UUID of each machine in the answer to ``list vms``; names may repeat."""
    matches = (_LISTED.fullmatch(line) for line in text.splitlines())
    return [(match[1], match[2]) for match in matches if match]


def listed_long(text: str) -> Iterator[MachineInfo]:
    """The machines in the answer to ``list vms --long``, but for inaccessible ones.

    It says less than ``showvminfo``, and says it also of a machine that somebody has locked.
    """
    starts = [match.start() for match in _BLOCK.finditer(text)]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        found: dict[str, str] = {}
        for line in text[start:end].splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key, value.strip())
        state = _STATE.fullmatch(found.get("State", ""))
        if state is None:
            continue
        word = state[1].replace(" ", "")
        yield MachineInfo(
            name=found["Name"],
            uuid=found.get("UUID", ""),
            word=_LONG.get(word, word),
            since=state[2] or "",
            session=found.get("Session name", ""),
            config=Path(found.get("Config file", "")),
            logs=Path(found.get("Log folder", "")),
        )


def interfaces(text: str) -> list[str]:
    """The names in the answer to ``list hostonlyifs``."""
    return re.findall(r"^Name: +(.*)$", text, re.MULTILINE)


def names_of(there: list[tuple[str, str]]) -> list[str]:
    """Names; the UUID where VirtualBox cannot tell the name, or has it twice."""
    count = Counter(name for name, _ in there)
    return [uuid if name == INACCESSIBLE or count[name] > 1 else name for name, uuid in there]


def choose(label: str, info: MachineInfo, wanted: str) -> Snapshot | None:
    """The snapshot of this name or UUID; for an empty name the current one, if there is one."""
    name = wanted or info.current
    found = [one for one in info.snapshots if name in (one.name, one.uuid)]
    if len(found) > 1:
        uuids = ", ".join(one.uuid for one in found)
        raise SnapshotNotFound(
            f"{label}: {len(found)} snapshots are called {name!r}; set the snapshot to the UUID of "
            f"one ({uuids}), or rename the others"
        )
    if wanted and not found:
        there = ", ".join(one.name for one in info.snapshots) or "none"
        raise SnapshotNotFound(f"{label}: no snapshot {wanted!r}; there is: {there}")
    return found[0] if found else None
