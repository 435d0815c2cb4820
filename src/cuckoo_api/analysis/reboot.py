"""The first half of a reboot analysis: an earlier one's files are put back, the guest restarted.

The guest is asked to restart itself: what waits for a shutdown is then done. One that does not, for
a sample may keep it from that, is restarted by the hypervisor, as by its reset button. Whatever
starts by itself afterwards was started by the guest, and not by us.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from cuckoo_api.artefacts import AnalysisFolder, write_atomic
from cuckoo_api.fleet import Lease
from cuckoo_api.guest import AgentRefused, GuestClient, GuestError
from cuckoo_api.machinery import Capability
from cuckoo_api.model.errors import NotFound
from cuckoo_api.model.task import Task

log = structlog.get_logger()

PACKAGE = "reboot"
NOTED = "reboot.json"
MAX_FILES = 1000
MAX_LINE = 64 << 10
MARK = "restarting"
"""A status that the agent loses when its guest restarts."""
WINDOWS = "shutdown /r /t 0"
UNIX = "reboot || busybox reboot"
"""What a guest is asked to do."""
PATIENCE = 20.0
"""Seconds that a guest gets to begin its restart: programs that run are asked to end first."""
_PROGRAMS = (b"\x7fELF", b"#!")


class Dropped(msgspec.Struct, frozen=True):
    """A line of files.json."""

    path: str
    filepath: str | None = None


def parent_of(task: Task) -> int:
    """The task whose traces a reboot analysis looks for; 0, which no task has, if none is told."""
    return int(task.custom) if re.fullmatch(r"[0-9]{1,18}", task.custom) else 0


async def restart_with(
    lease: Lease, client: GuestClient, parent: AnalysisFolder, timeout: float, *, into: Path
) -> list[str]:
    """Put the parent's files back at their places, restart, and wait for the agent.

    ``into`` is the folder of this analysis, which gets ``reboot.json``: what was done.
    Returns what should stand in the task's errors. Raises MachineryError or GuestError.
    """
    windows = lease.machine.platform == "windows"
    restored: list[str] = []
    errors = await _put_back(client, parent, restored, windows=windows)
    by = await _restart(lease, client, windows=windows, timeout=timeout)
    if by is None:
        errors.append(
            "The guest did not restart when it was asked to, and "
            f"{lease.machine.manager} cannot restart a machine: nothing was restarted"
        )
    else:
        log.info("analysis.restarted", machine=lease.machine.name, by=by)
    done = {"parent": int(parent.path.name), "restarted_by": by, "restored": restored}
    await write_atomic(into / NOTED, msgspec.json.encode(done))
    return errors


async def _restart(
    lease: Lease, client: GuestClient, *, windows: bool, timeout: float
) -> str | None:
    """Restart the guest. Returns who did it: itself, or the hypervisor; None when nobody could."""
    await client.mark(MARK)
    if await _restarts_itself(client, WINDOWS if windows else UNIX, timeout):
        return "guest"
    if not lease.capabilities & Capability.REBOOT:
        return None
    await lease.reboot()
    await client.wait_restarted(timeout, MARK)
    return "hypervisor"


async def _restarts_itself(client: GuestClient, command: str, timeout: float) -> bool:
    with contextlib.suppress(GuestError):  # it may be gone before it has answered
        await client.order(command)
    if not await client.forgets(PATIENCE, MARK):
        return False
    try:
        await client.wait_restarted(timeout, MARK)
    except GuestError:  # it went down and did not come up
        return False
    return True


async def _put_back(
    client: GuestClient, parent: AnalysisFolder, restored: list[str], *, windows: bool
) -> list[str]:
    errors: list[str] = []
    entries = await asyncio.to_thread(_dropped, parent)
    if not entries:
        errors.append("The analysis that this one follows left no files: nothing was put back")
    for entry in entries:
        where = str(entry.filepath)
        try:
            with parent.open(entry.path) as file:
                is_program = file.read(4).startswith(_PROGRAMS)
            await client.store(where, parent.path / entry.path)
            restored.append(where)
            if is_program and not windows:
                await client.make_executable(where)
        except NotFound:
            errors.append(f"{where} is not kept any more and was not put back")
        except AgentRefused as exc:
            errors.append(f"{where} could not be put back: {exc}")
    if not windows:
        await client.execute("sync")  # the reset button loses what is not on the disk
    return errors


def _dropped(parent: AnalysisFolder) -> list[Dropped]:
    """The files that have a place in the guest; the last of several for one place counts."""
    try:
        with parent.open("files.json") as file:
            found = {entry.filepath: entry for entry in _lines(file) if entry.filepath}
    except NotFound:
        return []
    return list(found.values())[:MAX_FILES]


def _lines(file: BinaryIO) -> Iterator[Dropped]:
    while line := file.readline(MAX_LINE):
        try:
            entry = msgspec.json.decode(line, type=Dropped)
        except msgspec.DecodeError:
            continue
        if entry.path.startswith("files/"):
            yield entry
