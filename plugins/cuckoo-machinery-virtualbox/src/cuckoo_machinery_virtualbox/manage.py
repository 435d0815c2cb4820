"""VBoxManage: one child process for each command, its answer, and what its failure means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from cuckoo_api.machinery import (
    BackendUnavailable,
    MachineNotFound,
    MachineryError,
    OperationTimedOut,
    SnapshotNotFound,
    WrongState,
)

_KEPT = re.compile(
    r"DISPLAY|HOME|LOGNAME|PATH|USER|VBOX_\w+|WAYLAND_DISPLAY|XAUTHORITY|XDG_CONFIG_HOME"
    r"|XDG_RUNTIME_DIR"
)
"""What of our environment VBoxManage gets, and through it each machine: no secret of ours."""
_CODE = re.compile(r"\b[cC]ode ((?:VBOX_)?(?:NS_ERROR|E)_\w+)")
_ERROR = "VBoxManage: error: "
_GONE = (
    "Failed to create the VirtualBox object",
    "Failed to initialize COM",
    "COM server is not running",
    "Call to remote object failed",
)
_WRONG_STATE = (
    "VBOX_E_INVALID_VM_STATE",
    "VBOX_E_INVALID_OBJECT_STATE",
    "E_ACCESSDENIED",
    "is not currently running",
)


class VBoxManage:
    """The program at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def run(self, *words: str, timeout: float) -> str:
        """What the command printed. Raises what its failure means, in VBoxManage's own words.

        After ``timeout`` seconds the child is killed: OperationTimedOut.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                self.path, *words,
                stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise BackendUnavailable(f"{self.path}: {exc.strerror or exc}") from exc
        command = f"VBoxManage {' '.join(words)}"
        try:
            async with asyncio.timeout(timeout):
                output, errors = await process.communicate()
        except TimeoutError as exc:
            raise OperationTimedOut(f"{command}: no end after {timeout:g} s") from exc
        finally:
            if process.returncode is None:
                # the group: /usr/bin/VBoxManage is a shell script in front of the program
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        text = output.decode(errors="replace")
        if process.returncode:
            raise failure(command, process.returncode, text, errors.decode(errors="replace"))
        return text

    async def ask(self, *words: str, timeout: float) -> str:
        """Like :meth:`run`, for a question: no answer means that VirtualBox is not there."""
        try:
            return await self.run(*words, timeout=timeout)
        except OperationTimedOut as exc:
            raise BackendUnavailable(f"VirtualBox does not answer: {exc}") from exc


def failure(command: str, code: int, output: str, errors: str) -> MachineryError:
    """The typed error for a command that ended with ``code``."""
    said = [line.removeprefix(_ERROR) for line in errors.splitlines() if line.startswith(_ERROR)]
    reasons = [line for line in said if not line.startswith(("Details: ", "Context: "))]
    if not reasons:
        # a few refusals come without the word error, and on the other stream
        reasons = [line.strip() for line in (output + errors).splitlines() if line.strip()][-1:]
    found = _CODE.search(errors)
    name = found[1] if found else ""
    text = "; ".join(reasons) or f"exit code {code}"
    return _kind(text, name)(f"{command}: {text}{f' ({name})' if name else ''}")


def _kind(text: str, code: str) -> type[MachineryError]:
    if any(word in text for word in _GONE):
        return BackendUnavailable
    if "registered machine" in text:
        return MachineNotFound
    if "snapshot named" in text or "does not have any snapshots" in text:
        return SnapshotNotFound
    if any(word in f"{text} {code}" for word in _WRONG_STATE):
        return WrongState
    return MachineryError


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
    return {**kept, "LC_ALL": "C"}
