"""The whole server on the fake hypervisor: asked over HTTP, and held to what truly happened."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cuckoo_api.analysis.scheduler import Scheduler
from cuckoo_api.http.keys import SERVICE, SWITCH
from cuckoo_api.machinery import Capability, MachineConfig
from cuckoo_api.reporting import service as reporting
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.pipeline import run_pipeline
from cuckoo_api.server.app import create_app
from cuckoo_api.server.run import serve
from cuckoo_api.settings import (
    CuckooSection,
    MachinerySettings,
    ReportingSection,
    Settings,
    TimeoutsSection,
)
from cuckoo_api.store import Store
from cuckoo_api.testing.fake import (
    ALL,
    FakeGuest,
    FakeHypervisor,
    GuestRun,
    Script,
    fake_plugin,
    scripts,
)
from waiting import PATIENCE, Bell, News

TOKEN = "secret"
SAMPLE = b"#!/bin/sh\necho hello\n"
REAL_WORKER = reporting._run
"""Runs the report's steps in a process of their own, as a server does."""


class AudibleScheduler(Scheduler):
    """Its bell tells when it is at rest."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._wanted = self.bell = Bell()


async def report_here(
    _worker: object, request: Request, _timeout: float, progress: reporting._Progress
) -> str | None:
    """The same steps in a thread: a process takes longer to start than an analysis here."""
    for reply in await asyncio.to_thread(lambda: list(run_pipeline(request))):
        progress.took(reply)
    return None


class Gate:
    """A script that waits in the middle until the test lets it go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, run: GuestRun) -> None:
        await self.open.wait()
        await scripts.normal(run)


class Site:
    """A working directory, a hypervisor, and the server between them while it is started."""

    def __init__(self, cwd: Path, world: FakeHypervisor, writes: News) -> None:
        self.world = world
        self.writes = writes
        self.capabilities: Capability = ALL
        self.settings = Settings(
            cwd=cwd,
            cuckoo=CuckooSection(machinery=("fake",), api_token=TOKEN, freespace=0),
            timeouts=TimeoutsSection(default=5, critical=5, agent=5),
            reporting=ReportingSection(html=False),  # no test but one looks at it
            machinery={"fake": MachinerySettings(name="fake", options={}, machines=())},
        )
        self.app: web.Application | None = None
        self.url = ""
        self._session: aiohttp.ClientSession | None = None
        self._serving: asyncio.Task[None] | None = None

    # -- the scene ------------------------------------------------------------------------------

    def add(
        self,
        label: str,
        script: Script = scripts.normal,
        *,
        platform: str = "linux",
        tags: Iterable[str] = (),
        **guest: Any,
    ) -> None:
        """A machine whose guest plays the script."""
        self.world.add(label, guest=FakeGuest(script, **guest))
        machines = self.settings.machinery["fake"].machines
        machine = MachineConfig(
            label=label,
            name=label,
            ip=f"192.168.55.{11 + len(machines)}",
            platform=platform,
            tags=tuple(tags),
            resultserver_ip="192.168.55.1",
        )
        fake = MachinerySettings(name="fake", options={}, machines=(*machines, machine))
        self.settings = replace(self.settings, machinery={"fake": fake})

    def configure(self, section: str, **values: object) -> None:
        """Change settings; fractions of a second are taken as well."""
        changed = replace(getattr(self.settings, section), **values)
        self.settings = replace(self.settings, **{section: changed})

    def guest(self, label: str) -> FakeGuest:
        """The inside of a machine."""
        guest = self.world.machines[label].guest
        assert guest is not None
        return guest

    def beside(self) -> Site:
        """Another server's place on the same working directory and hypervisor."""
        other = Site(self.settings.cwd, self.world, self.writes)
        other.settings = self.settings
        return other

    # -- the server -----------------------------------------------------------------------------

    async def start(self, *, engine: bool = True, debug: bool = False) -> None:
        """Serve on a free port; raises what the start raises."""
        self.app = create_app(
            self.settings,
            plugins=[fake_plugin(self.world, capabilities=self.capabilities)],
            engine=engine,
            debug=debug,
        )
        ready = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(serve(self.app, port=0, on_ready=ready.set_result))
        await asyncio.wait({self._serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._serving, failed = None, self._serving
            failed.result()
        self.url = ready.result()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self._session = aiohttp.ClientSession(self.url, headers=headers)

    async def stop(self) -> None:
        """End it as SIGTERM does."""
        if self.app is not None and self._serving is not None:
            stop = self.app[SWITCH].stop
            assert stop is not None
            stop()
        await self.stopped()

    async def stopped(self) -> None:
        """Return once the server has ended."""
        session, self._session = self._session, None
        serving, self._serving = self._serving, None
        if session is not None:
            await session.close()
        if serving is not None:
            async with asyncio.timeout(PATIENCE):
                await serving

    # -- its clients ----------------------------------------------------------------------------

    async def get(self, path: str, status: int = 200) -> Any:
        """The JSON at a path."""
        assert self._session is not None
        async with self._session.get(path) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def read(self, path: str) -> bytes:
        """The bytes at a path."""
        assert self._session is not None
        async with self._session.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.read()

    async def post(self, path: str, **fields: object) -> Any:
        """Send a form."""
        assert self._session is not None
        async with self._session.post(path, data=fields) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def submit(
        self, content: bytes = SAMPLE, name: str = "sample.sh", **fields: object
    ) -> int:
        """Submit a file; its task. The first machine that is free and fits will have it."""
        await self.at_rest()
        form = aiohttp.FormData({key: str(value) for key, value in fields.items()})
        form.add_field("file", content, filename=name)
        assert self._session is not None
        async with self._session.post("/tasks/create/file", data=form) as response:
            assert response.status == 200, await response.text()
            return int((await response.json())["task_id"])

    async def task(self, task_id: int) -> dict[str, Any]:
        """A task as it is now."""
        task: dict[str, Any] = (await self.get(f"/tasks/view/{task_id}"))["task"]
        return task

    async def until(self, task_id: int, *states: str) -> dict[str, Any]:
        """The task once it is in one of the states."""

        async def there() -> dict[str, Any] | None:
            task = await self.task(task_id)
            return task if task["status"] in states else None

        task: dict[str, Any] = await self._until(there)
        return task

    async def analyse(self, content: bytes = SAMPLE, **fields: object) -> dict[str, Any]:
        """Submit a file; its task once it is reported."""
        return await self.until(await self.submit(content, **fields), "reported")

    async def machine(self, name: str) -> dict[str, Any]:
        """A machine as it is now."""
        machine: dict[str, Any] = (await self.get(f"/machines/view/{name}"))["machine"]
        return machine

    async def running(self, *labels: str) -> None:
        """Until the guests of these machines run a sample."""
        async with asyncio.timeout(PATIENCE):
            await self.world.until(
                lambda: all(
                    label in self.world.running() and self.guest(label).runs for label in labels
                )
            )

    async def at_rest(self) -> None:
        """Until the scheduler has looked at all it was told of."""
        assert self.app is not None
        wakes = self.app[SERVICE]._on_submitted
        scheduler = getattr(wakes, "__self__", None)
        if isinstance(scheduler, AudibleScheduler):
            await scheduler.bell.at_rest()

    async def quarantined(self, *names: str) -> None:
        """Until none of these machines may be used."""

        async def barred() -> bool:
            return all([(await self.machine(name))["quarantine"] for name in names])

        await self._until(barred)

    async def seen(self, name: str, state: str) -> None:
        """Until the API shows the machine in this state."""

        async def shown() -> bool:
            return bool((await self.machine(name))["status"] == state)

        await self._until(shown)

    async def free(self) -> None:
        """Until no machine is leased; then all of them must truly be off."""

        async def unlocked() -> bool:
            return not any(m["locked"] for m in (await self.get("/machines/list"))["machines"])

        await self._until(unlocked)
        assert self.world.running() == []

    async def _until(self, there: Callable[[], Any]) -> Any:
        try:
            return await self.writes.until(there)
        except TimeoutError:
            raise AssertionError((await self.get("/tasks/list"))["tasks"]) from None

    # -- what is left ---------------------------------------------------------------------------

    def folder(self, task_id: int) -> Path:
        """Where the results of a task lie."""
        return self.settings.storage / "analyses" / str(task_id)

    @contextlib.asynccontextmanager
    async def store(self) -> Any:
        """The store itself, while no server is started."""
        store = await Store.open(f"sqlite:///{self.settings.cwd / 'cuckoo.db'}")
        try:
            yield store
        finally:
            await store.close()

    async def assert_nothing_left(self) -> None:
        """After the end: all machines off, none leased, no task in hand, no backend open."""
        assert self.world.running() == []
        assert self.world.open_backends == self.world.watched == 0
        async with self.store() as store:
            assert [m.name for m in await store.machines.list() if m.locked] == []
            assert await store.tasks.running() == []


def new_cwd(cwd: Path, database: Path) -> Path:
    """A working directory with an empty database."""
    for name in ("analyses", "binaries"):
        (cwd / "storage" / name).mkdir(parents=True)
    shutil.copy(database, cwd / "cuckoo.db")
    return cwd
