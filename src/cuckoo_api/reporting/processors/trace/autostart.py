"""After a restart: which processes started by themselves, and which of them the sample had planted.

The Linux analyzer's ``autostart.sh`` starts what such a system starts: its children tell what did.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.processors.trace.activity import Activity, Process
from cuckoo_api.reporting.processors.trace.calls import INTERPRETER

REBOOT = "reboot.json"
MAX_REBOOT = 8 << 20
HELPER = "autostart.sh"
CRON, LOGIN, SERVICE = "cron", "login", "service"
TOOLS = {"sleep", "cat", "rm", "grep", "sed", HELPER}
"""What the helper itself uses."""

_WORD = re.compile(r"[^\s'\";|&<>()]+")


class Restart(msgspec.Struct, frozen=True):
    """``reboot.json``: what the server noted about a restart."""

    parent: int = 0
    """The task whose files were put back."""
    restarted_by: str | None = None
    """``guest``, ``hypervisor``; None when nothing was restarted."""
    restored: list[str] = []
    """Paths in the guest."""


def restart_of(evidence: Evidence) -> Restart | None:
    """What is noted about a restart; None for an analysis without one."""
    data = evidence.read(REBOOT, MAX_REBOOT)
    try:
        return msgspec.json.decode(data, type=Restart) if data else None
    except msgspec.MsgspecError:
        return None


def mark_autostarts(activity: Activity, restored: Collection[str]) -> None:
    """Mark what the helper has started, and what that has started, and so on."""
    paths = frozenset(restored)
    starters: dict[int, str] = {}
    for process in activity.processes:  # a parent comes before its children
        parent = process.parent
        if parent is None:
            continue
        by = starters.get(parent.number) or _starter(process, activity)
        if by:
            starters[process.number] = by
            inherited = parent.autostart is not None and parent.autostart["restored"]
            planted = inherited or _is_planted(process, paths)
            process.autostart = {"by": by, "restored": planted}


def _starter(process: Process, activity: Activity) -> str:
    """What starts such a process in a system; empty for one of the helper's own."""
    if f"/{HELPER}" in process.command_line:
        return ""
    if process.name in TOOLS and process.parent is activity.processes[0]:
        return ""
    if process.name == "cron":
        return CRON
    return LOGIN if process.command_line.endswith(" -l -c :") else SERVICE


def _is_planted(process: Process, restored: frozenset[str]) -> bool:
    """Whether it runs what an earlier analysis left: a program, a script, a start-up file."""
    # all that it became, one after the other: a script often ends as another program
    lines: dict[Any, None] = process.summary.get("command_line", {})
    if any(not restored.isdisjoint(_WORD.findall(str(line))) for line in lines):
        return True
    read: dict[Any, None] = process.summary.get("file_read", {})
    return bool(INTERPRETER.fullmatch(process.name)) and not restored.isdisjoint(read)
