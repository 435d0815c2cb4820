"""The configuration read anew while the server runs: taken on as a whole, or not at all.

Settings stay what they are, frozen. Each part that lives as long as the server has a method
``reconfigure``, and keeps to what it was given last; what is at work goes on with what it began
with. This module reads the files, holds back what only a start can change, and hands the rest on.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog

from cuckoo_api.model.errors import ConfigError, CuckooError
from cuckoo_api.settings import MachinerySettings, Settings

log = structlog.get_logger()

Part = Callable[[Settings], Awaitable[None]]
"""Takes settings on. Only the first one may refuse them, by ConfigError."""

FIXED = (
    ("cuckoo", "rooter"),
    ("api", "host"),
    ("api", "port"),
    ("database", "connection"),
    ("database", "timeout"),
    ("resultserver", "ip"),
    ("resultserver", "port"),
    ("routing", "route"),
    ("routing", "sinkhole_dns_port"),
    ("routing", "sinkhole_http_port"),
)
"""What is bound or opened once, or made part of a guest's network."""


class Reloader:
    """Reads the files when it is asked to, one reload at a time."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        parts: Sequence[Part],
    ) -> None:
        """``read`` blocks, and raises ConfigError."""
        self.settings = settings
        """Those in force."""
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered for each reload."""
        self._read = read
        self._parts = parts
        self._asked = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Be ready to be asked."""
        self._loop = asyncio.create_task(self._serve(), name="reload")

    async def close(self) -> None:
        """Take nothing on any more."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})

    def ask(self) -> None:
        """Reload soon. Asked again in the middle of one, it is done once more."""
        self._asked.set()

    async def _serve(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                with self.around():
                    await self.reload()
            except Exception:  # whatever it is, the server goes on, and may be asked again
                log.exception("reload.failed")

    async def reload(self) -> bool:
        """Whether the files were taken on; else all faults are in the log, and nothing changed."""
        try:
            read = await asyncio.to_thread(self._read)
            new, held_back = hold_back(self.settings, read)
            await self._parts[0](new)
        except ConfigError as exc:
            # a traceback would say nothing that the faults do not
            log.warning("reload.refused", faults=exc.faults, hint="all settings stay as they were")
            return False
        for warning in new.warnings:
            log.warning("settings", warning=warning)
        for name in held_back:
            log.warning("reload.needs_restart", setting=name)
        for part in self._parts[1:]:
            try:
                await part(new)
            except CuckooError as exc:  # the store, most likely: the others still take theirs on
                log.warning("reload.incomplete", reason=exc.log)
        log.info("reload.done", changed=changed(self.settings, new))
        self.settings = new
        return True


def hold_back(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """The new settings without what takes a restart, and the names of that."""
    held: list[str] = []
    results = new.resultserver
    for section, key in FIXED:
        before, after = (getattr(getattr(which, section), key) for which in (old, new))
        if before != after:
            held.append(f"[{section}] {key}")
            changed_section = dataclasses.replace(getattr(new, section), **{key: before})
            new = dataclasses.replace(new, **{section: changed_section})
    if new.resultserver != results:  # machines that name no address have the section's
        machinery = {
            name: _with_results(section, results.ip, results.port, new)
            for name, section in new.machinery.items()
        }
        new = dataclasses.replace(new, machinery=machinery)
    return dataclasses.replace(new, cwd=old.cwd), held


def _with_results(section: MachinerySettings, ip: str, port: int, new: Settings) -> Any:
    results = new.resultserver
    machines = tuple(
        dataclasses.replace(
            m,
            resultserver_ip=results.ip if m.resultserver_ip == ip else m.resultserver_ip,
            resultserver_port=results.port if m.resultserver_port == port else m.resultserver_port,
        )
        for m in section.machines
    )
    return dataclasses.replace(section, machines=machines)


def changed(old: Settings, new: Settings) -> list[str]:
    """The names of the sections that differ; no values, for some are secret."""
    names = [item.name for item in dataclasses.fields(Settings) if item.name != "warnings"]
    return [name for name in names if getattr(old, name) != getattr(new, name)]
