"""A server on fifty fake machines, five of a hundred of whose steps go wrong. Run by test_soak.

``python soakserver.py CWD``: prints its URL, and for each line of standard input what it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web_app

from cuckoo_api.fleet import Deadlines
from cuckoo_api.http.keys import SETTINGS
from cuckoo_api.machinery import BackendUnavailable, MachineConfig, MachineryError
from cuckoo_api.server.app import create_app
from cuckoo_api.server.logs import configure_logs
from cuckoo_api.server.run import serve
from cuckoo_api.settings import (
    CuckooSection,
    MachinerySettings,
    ReportingSection,
    Settings,
    TimeoutsSection,
)
from cuckoo_api.testing.fake import (
    Dies,
    Failing,
    FakeGuest,
    FakeHypervisor,
    GuestRun,
    Slow,
    fake_plugin,
    scripts,
)
from cuckoo_api.testing.modes import Mode

MACHINES = 50
FAULTS = 0.05
TOKEN = "soak"

CALLS: dict[str, tuple[Callable[[], Mode], ...]] = {
    "restore_and_start": (
        lambda: Failing(MachineryError("bad snapshot")),
        lambda: Dies(0.05),
        lambda: Slow(0.5),
        lambda: Failing(BackendUnavailable("connection reset")),
    ),
    "power_off": (lambda: Failing(MachineryError("device busy")), lambda: Slow(0.5)),
    "screenshot": (lambda: Failing(MachineryError("no display")),),
}
"""What goes wrong with the hypervisor's calls. A new error each time: one that is raised again
keeps whatever it passed the times before."""
SAMPLES = (
    scripts.dies,
    scripts.fails,
    scripts.hangs,
    scripts.kills_agent,
    scripts.garbage,
    scripts.floods,
)
"""What goes wrong in guests."""


class FaultyHypervisor(FakeHypervisor):
    """One in twenty of its calls goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = random.Random(1)
        self.quiet = False

    def _mode(self, method: str, label: str) -> Mode | None:
        modes = CALLS.get(method)
        if modes and not self.quiet and self._chance.random() < FAULTS:
            return self._chance.choice(modes)()
        return super()._mode(method, label)

    def forget(self) -> None:
        """Drop the records that only tests look at; they would grow for ever."""
        self._log.clear()
        # aiohttp keeps the last thousand applications that were asked; each boot of a fake has one
        web_app._cached_build_middleware.cache_clear()
        for machine in self.machines.values():
            machine.history.clear()
            if machine.guest is not None:
                for kept in (machine.guest.requests, machine.guest.commands, machine.guest.runs):
                    kept.clear()

    async def script(self, run: GuestRun) -> None:
        """What a guest does with its sample."""
        if not self.quiet and self._chance.random() < FAULTS:
            await self._chance.choice(SAMPLES)(run)
        else:
            await scripts.normal(run)


async def main(cwd: Path) -> None:
    async with FaultyHypervisor() as world:
        machines = []
        for number in range(MACHINES):
            world.add(f"m{number}", guest=FakeGuest(world.script))
            machines.append(
                MachineConfig(
                    label=f"m{number}",
                    name=f"m{number}",
                    ip=f"192.168.55.{11 + number}",
                    platform="linux",
                    tags=("office",) if number % 5 == 0 else (),
                    resultserver_ip="192.168.55.1",
                )
            )
        settings = Settings(
            cwd=cwd,
            cuckoo=CuckooSection(machinery=("fake",), api_token=TOKEN, freespace=0),
            timeouts=TimeoutsSection(default=2, critical=2, agent=2, vm_state=5),
            reporting=ReportingSection(html=False),
            machinery={
                "fake": MachinerySettings(name="fake", options={}, machines=tuple(machines))
            },
        )
        # what rests half a minute in a real pool would rest for a test's whole length
        Deadlines.of = lambda timeouts: Deadlines(  # type: ignore[method-assign]
            start=timeouts.vm_state, first_retry=0.3, last_retry=0.6, first_reopen=0.1
        )
        app = create_app(settings, plugins=[fake_plugin(world)])
        assert app[SETTINGS] is settings
        listening = asyncio.create_task(answer(world))
        await serve(app, port=0, on_ready=lambda url: print(url, flush=True))
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


async def answer(world: FaultyHypervisor) -> None:
    """Obey standard input: ``quiet`` ends the faults; each line is answered by what is held."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    try:
        while line := await lines.readline():
            world.quiet = line.strip() == b"quiet"
            world.forget()
            gc.collect()
            print(json.dumps(held(world)), flush=True)
    finally:
        transport.close()


def held(world: FaultyHypervisor) -> dict[str, Any]:
    """What this process holds now."""
    tasks = sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]
    return {
        "tasks": tasks,
        "descriptors": sorted(
            str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
        ),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "running": world.running(),
    }


if __name__ == "__main__":
    configure_logs()
    asyncio.run(main(Path(sys.argv[1])))
