from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cuckoo_api.fleet import Deadlines, Fleet, Lease, load_plugins
from cuckoo_api.machinery import Capability, MachineConfig
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import NewTask
from cuckoo_api.settings import CuckooSection, MachinerySettings, Settings
from cuckoo_api.store import Store
from cuckoo_api.testing.fake import ALL, FakeHypervisor, fake_plugin

PATIENT = Deadlines(
    start=5,
    dump=5,
    fresh=0,
    ask=0.01,
    first_retry=0.01,
    last_retry=0.02,
    first_reopen=0.01,
    last_reopen=0.02,
)
"""Retries come at once. Calls have seconds: what is to time out here hangs, and is cut short."""


@dataclass
class Site:
    """A fleet with its settings, store and one fake hypervisor for each machinery."""

    cwd: Path
    store: Store
    worlds: dict[str, FakeHypervisor]
    capabilities: Capability = ALL
    deadlines: Deadlines = PATIENT
    cuckoo: CuckooSection = field(default_factory=CuckooSection)
    extra: tuple[object, ...] = ()

    @property
    def world(self) -> FakeHypervisor:
        return self.worlds["fake"]

    def settings(self) -> Settings:
        return Settings(
            cwd=self.cwd,
            cuckoo=replace(self.cuckoo, machinery=tuple(self.worlds)),
            machinery={
                name: MachinerySettings(
                    name=name,
                    options={"colour": "grey"},
                    machines=tuple(
                        MachineConfig(label=label, name=f"{label}-name", snapshot="clean")
                        for label in world.machines
                    ),
                )
                for name, world in self.worlds.items()
            },
        )

    @asynccontextmanager
    async def fleet(self, settings: Settings | None = None) -> AsyncIterator[Fleet]:
        plugins = load_plugins(
            [
                fake_plugin(world, name=name, capabilities=self.capabilities)
                for name, world in self.worlds.items()
            ]
        )
        fleet = Fleet(
            settings or self.settings(),
            plugins,
            self.store,
            deadlines=self.deadlines,
        )
        await fleet.open()
        try:
            yield fleet
        finally:
            await fleet.close()
        for world in self.worlds.values():
            assert world.open_backends == 0
            assert world.watched == 0

    async def lease(self, fleet: Fleet, name: str = "one-name") -> Lease:
        """A lease on this machine, for a new task."""
        await self.store.tasks.submit([NewTask(category="file", target="x", machine=name)])
        [machine] = [m for m in fleet.free() if m.name == name]
        lease = await fleet.lease(machine)
        assert lease is not None
        return lease

    async def row(self, name: str = "one-name") -> Machine:
        row = await self.store.machines.get(name)
        assert row is not None
        return row


Until = Callable[[Fleet, Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def world() -> AsyncIterator[FakeHypervisor]:
    async with FakeHypervisor() as world:
        world.add("one", with_guest=False)
        world.add("two", with_guest=False)
        yield world


@pytest.fixture
async def site(world: FakeHypervisor, tmp_path: Path, empty_database: Path) -> AsyncIterator[Site]:
    path = tmp_path / "cuckoo.db"
    shutil.copy(empty_database, path)
    store = await Store.open(f"sqlite:///{path}")
    yield Site(tmp_path, store, {"fake": world})
    await store.close()


async def _until(fleet: Fleet, happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not happened():
            await fleet.wait_changed()


@pytest.fixture
def until() -> Until:
    """Wait for the fleet's own events until something is so; two seconds at most."""
    return _until
