"""All that the HTTP layer may ask of the server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Literal, Protocol

from cuckoo_api.analysis.submission import (
    base_name,
    check_machines,
    check_route,
    parse_bool,
    parse_fields,
)
from cuckoo_api.analysis.system import SystemStatus, free_bytes, system_status
from cuckoo_api.artefacts import AnalysisFolder, Artefacts, Upload
from cuckoo_api.model.errors import BadInput, NotFound
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import NewSample, Sample
from cuckoo_api.model.task import NewTask, Task
from cuckoo_api.settings import Settings
from cuckoo_api.store import Store, TaskFilter

MAX_URL = 8 << 10


class MachineView(Protocol):
    """Who knows the machines' states now: the fleet, where this process has an engine."""

    async def machines(self) -> list[Machine]:
        """Every configured machine."""


class AnalysisService:
    """Submissions, views and files; one object for the life of the server.

    ``on_submitted`` is called after tasks became durable: it wakes whoever gives out work, in
    this process or another. ``fleet`` is None where this process serves the API alone; the
    machines are then what the engine's process last wrote to the store.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        artefacts: Artefacts,
        *,
        on_submitted: Callable[[], None],
        fleet: MachineView | None = None,
        processes: Mapping[str, int] | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._artefacts = artefacts
        self._on_submitted = on_submitted
        self._fleet = fleet
        self._processes = dict(processes or {})
        self._unique = asyncio.Lock()

    # -- submit -------------------------------------------------------------------------------

    def receive(self) -> AbstractAsyncContextManager[Upload]:
        """Take an upload: bytes are hashed on their way to disk, up to the configured size."""
        return self._artefacts.receive(max_size=self._settings.api.max_upload_size)

    async def submit_files(
        self, uploads: Sequence[tuple[str, Upload]], fields: Mapping[str, str]
    ) -> list[int]:
        """Make a task of each upload, with its client's name; ids once all is durable.

        Raises BadInput for a field that does not parse, a machine that is not there, or, with
        ``unique``, a file that was submitted before. What was refused leaves no file behind.
        """
        parsed = parse_fields(fields)
        unique = parse_bool("unique", fields.get("unique", ""))
        tasks = [NewTask(category="file", target=base_name(name), **parsed) for name, _ in uploads]
        await self._check(tasks[0])
        ids: list[int] = []
        async with self._unique if unique else nullcontext():
            for task, (_, upload) in zip(tasks, uploads, strict=True):
                sample = await upload.finish()
                if unique and await self._store.samples.find("sha256", sample.sha256):
                    raise BadInput("This file has already been submitted")
                ids += await self._store.tasks.submit([task], sample)
        self._on_submitted()
        return ids

    async def submit_file(self, sample: NewSample, name: str, fields: Mapping[str, str]) -> int:
        """Make a task of a received file; its id, once sample and task are durable."""
        task = NewTask(category="file", target=base_name(name), **parse_fields(fields))
        unique = parse_bool("unique", fields.get("unique", ""))
        await self._check(task)
        async with self._unique if unique else nullcontext():
            if unique and await self._store.samples.find("sha256", sample.sha256):
                raise BadInput("This file has already been submitted")
            [task_id] = await self._store.tasks.submit([task], sample)
        self._on_submitted()
        return task_id

    async def submit_url(self, url: str, fields: Mapping[str, str]) -> int:
        """Make a task of a URL; its id, once the task is durable."""
        url = url.strip()
        if not url or len(url) > MAX_URL or not url.isprintable():
            raise BadInput(
                f"url: expected an address of 1 to {MAX_URL} characters without control characters"
            )
        task = NewTask(category="url", target=url, **parse_fields(fields))
        await self._check(task)
        [task_id] = await self._store.tasks.submit([task])
        self._on_submitted()
        return task_id

    async def _check(self, task: NewTask) -> None:
        """Refuse what this server can never do."""
        check_route(task, self._settings.routing.offered)
        if (task.machine or task.platform or task.tags) and (
            not self._settings.cuckoo.wait_for_machines
        ):
            check_machines(task, await self._store.machines.list())

    # -- tasks ----------------------------------------------------------------------------------

    async def view(self, task_id: int) -> Task:
        """One task; NotFound."""
        task = await self._store.tasks.get(task_id)
        if task is None:
            raise NotFound("Task not found")
        return task

    def tasks(
        self, where: TaskFilter, limit: int | None = None, offset: int = 0
    ) -> AsyncIterator[Task]:
        """Tasks in the API's order, in constant memory."""
        return self._store.tasks.each(where, limit=limit, offset=offset)

    def folder(self, task_id: int) -> AnalysisFolder:
        """Where the results of a task lie, or would lie; a folder put there by hand counts."""
        return self._artefacts.analysis(task_id)

    # -- samples ----------------------------------------------------------------------------------

    async def sample(
        self, key: Literal["id", "md5", "sha1", "sha256"], value: str | int
    ) -> tuple[Sample, list[int]]:
        """A sample and the ids of its tasks; NotFound."""
        found = await self._store.samples.find(key, value)
        if found is None:
            raise NotFound("File not found")
        return found

    def binary(self, sha256: str) -> Path:
        """The sample's file; NotFound."""
        return self._artefacts.binary(sha256)

    # -- machines and the server itself -------------------------------------------------------

    async def machines(self) -> list[Machine]:
        """Every configured machine with its state now."""
        return await (self._fleet or _Rows(self._store)).machines()

    async def machine(self, name: str) -> Machine:
        """One machine by name; NotFound."""
        for machine in await self.machines():
            if machine.name == name:
                return machine
        raise NotFound("Machine not found")

    async def status(self) -> SystemStatus:
        """The server's and its host's figures now."""
        temporary = self._settings.cuckoo.tmppath or Path(tempfile.gettempdir())
        return system_status(
            self._settings.storage,
            temporary,
            await self._store.tasks.counts(),
            await self._store.machines.list(),
            self._processes,
        )

    async def problems(self) -> list[str]:
        """Why the server may not take or do work; empty when it may."""
        found: list[str] = []
        free = free_bytes(self._settings.storage)
        if free < self._settings.cuckoo.freespace:
            found.append(
                f"disk: {free >> 20} MiB free under {self._settings.storage}, "
                f"[cuckoo] freespace asks for {self._settings.cuckoo.freespace >> 20}"
            )
        machines = await self._store.machines.list()
        if self._fleet is not None and not machines:
            found.append("machines: none is configured; run 'cuckoo guest build'")
        reasons = {
            m.name: m.quarantine or ("unreachable" if m.status == "unreachable" else "")
            for m in machines
        }
        if machines and all(reasons.values()):
            found.extend(f"machine {name}: {reason}" for name, reason in reasons.items())
        return found


class _Rows:
    """The machines as the engine's process last wrote them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def machines(self) -> list[Machine]:
        return await self._store.machines.list()
