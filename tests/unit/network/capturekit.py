"""The part of a lease that a capture uses, and a look at our own processes."""

from __future__ import annotations

import importlib
from pathlib import Path

import psutil

from cuckoo_api.machinery import Capability, WrongState

module = importlib.import_module("cuckoo_api.network.capture")  # the function has the same name


class Machine:
    def __init__(self, capabilities: Capability = Capability.NONE, *, fails: bool = False) -> None:
        self.capabilities = capabilities
        self.fails = fails
        self.calls: list[str] = []

    async def start_capture(self, path: Path) -> None:
        self.calls.append(f"start {path.name}")
        if self.fails:
            raise WrongState("it is off")

    async def stop_capture(self) -> None:
        self.calls.append("stop")
        if self.fails:
            raise WrongState("it is off")


def children() -> dict[str, psutil.Process]:
    """Our own that run, by name."""
    found = {}
    for child in psutil.Process().children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child.name()] = child
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return found
