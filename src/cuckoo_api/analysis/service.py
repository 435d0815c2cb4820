"""All that the HTTP layer may ask of the server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import structlog

from cuckoo_api.analysis import reboot
from cuckoo_api.analysis.addresses import check_url
from cuckoo_api.analysis.archive import Unpacker
from cuckoo_api.analysis.collect import Collector
from cuckoo_api.analysis.deletion import delete_task, forget_binary
from cuckoo_api.analysis.disk import DiskRoom
from cuckoo_api.analysis.events import Feed
from cuckoo_api.analysis.fuzzyhash import with_fuzzy_hash
from cuckoo_api.analysis.holding import Holding
from cuckoo_api.analysis.strings import MAX_URL, lines_of
from cuckoo_api.analysis.submission import (
    base_name,
    check_machines,
    check_route,
    parse_bool,
    parse_fields,
)
from cuckoo_api.analysis.system import SystemStatus, system_status
from cuckoo_api.analysis.virustotal import VirusTotal
from cuckoo_api.artefacts import AnalysisFolder, Artefacts, Upload
from cuckoo_api.model.errors import BadInput, CuckooError, NotFound
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.sample import NewSample, Sample
from cuckoo_api.model.task import NewTask, Status, Task
from cuckoo_api.network.rooter.client import RooterUnavailable
from cuckoo_api.network.vpn import Monitor, VpnState, VpnStatus
from cuckoo_api.settings import Settings
from cuckoo_api.store import Store, TaskFilter

log = structlog.get_logger()

UNPACKERS = 2
"""Archives that are unpacked at the same time."""
SUBMIT_OPTIONS = {"procmemdump": "yes"}
"""What tasks of a mixed submission have, unless they say otherwise; Cuckoo 2 has it so."""
PROCESSED = frozenset({Status.REPORTED, Status.FAILED_PROCESSING, Status.FAILED_REPORTING})
"""States in which there are results to make a report of."""
REBOOT_KEEPS = (
    "category", "target", "sample_id", "options", "timeout", "priority", "owner", "platform",
    "tags", "memory", "enforce_timeout",
)  # fmt: skip
"""What a reboot analysis takes over from the one that it follows."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a mixed submission."""

    submit_id: int
    task_ids: list[int]
    errors: list[str]
    """A sentence about each thing that became no task."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the server is."""

    tasks: dict[Status, int]
    machines: list[Machine]
    free_bytes: int
    is_paused: bool
    """Whether no analysis starts, for want of room."""
    vpns: Sequence[VpnState] = ()
    """As they were last seen."""


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
        processes: Callable[[], Mapping[str, int]] = dict,
        events: Feed | None = None,
        disk: DiskRoom | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self._monitor = monitor
        self.events = events or Feed(store)
        self._disk = disk or DiskRoom(settings.storage, settings.cuckoo.freespace)
        self._settings = settings
        self._store = store
        self._artefacts = artefacts
        self._on_submitted = on_submitted
        self._fleet = fleet
        self._processes = processes
        self._unique = asyncio.Lock()
        self._unpackers = asyncio.Semaphore(UNPACKERS)

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._settings

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings, from the next call on."""
        self._settings = settings
        self._disk.wanted = settings.cuckoo.freespace

    # -- submit -------------------------------------------------------------------------------

    def receive(self) -> AbstractAsyncContextManager[Upload]:
        """Take an upload: bytes are hashed on their way to disk, up to the configured size."""
        return self._artefacts.receive(max_size=self._settings.api.max_upload_size)

    async def submit_files(
        self, uploads: Sequence[tuple[str, Upload]], fields: Mapping[str, str]
    ) -> list[int]:
        """Make a task of each upload, with its client's name; ids once all is durable.

        Raises BadInput for a field that does not parse, a machine that is not there, or, with
        ``unique``, a file that was submitted before or twice now. All are taken or none: what was
        refused leaves no task and no file behind.
        """
        parsed = parse_fields(fields)
        unique = parse_bool("unique", fields.get("unique", ""))
        tasks = [NewTask(category="file", target=base_name(name), **parsed) for name, _ in uploads]
        await self._check(tasks[0])
        samples: list[NewSample] = []
        try:
            for _, upload in uploads:
                samples.append(await upload.finish())
            async with self._unique if unique else nullcontext():
                if unique:
                    await self._check_unique([sample.sha256 for sample in samples])
                ids = await self._store.tasks.submit_files(list(zip(tasks, samples, strict=True)))
        except BaseException:
            for _, upload in uploads:
                await upload.discard()
            for _, upload in uploads:
                if upload.sample is not None:
                    await self._forget_binary(upload.sample.sha256)
            raise
        self._announce(ids)
        return ids

    async def _check_unique(self, hashes: Sequence[str]) -> None:
        if len(set(hashes)) < len(hashes) or any([await self._is_known(h) for h in hashes]):
            raise BadInput("This file has already been submitted")

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
        self._announce([task_id])
        return task_id

    async def submit(
        self, uploads: Sequence[tuple[str, Upload]], strings: str, fields: Mapping[str, str]
    ) -> Submitted:
        """Make tasks of files, of what is worth running in archives, and of lines of text.

        A line is a URL, a bare domain, or the hash of a file that VirusTotal has. What cannot be
        taken costs a sentence and nothing else. Raises BadInput for a field that does not parse.
        """
        lines = lines_of(strings)
        if not uploads and not lines:
            # 500, as Cuckoo 2 has it: clients know it
            raise CuckooError("No files or strings have been given!")
        parsed = parse_fields(fields)
        parsed["options"] = SUBMIT_OPTIONS | parsed.get("options", {})
        await self._check(NewTask(category="file", target="", **parsed))
        holding = Holding(
            self._artefacts, self._forget_binary, max_size=self._settings.api.max_upload_size
        )
        async with holding:
            collector = Collector(
                parsed,
                holding,
                Unpacker(holding, self._settings.archives),
                VirusTotal(self._settings.virustotal),
                slots=self._unpackers,
            )
            for name, upload in uploads:
                await collector.add_file(name, upload)
            await collector.add_lines(lines)
            submit_id, ids = await self._store.tasks.submit_all(collector.tasks)
            holding.keep([sample for _, sample in collector.tasks if sample])
        if ids:
            self._announce(ids)
        return Submitted(submit_id, ids, collector.errors)

    def _announce(self, ids: Sequence[int]) -> None:
        # the line that has both the request's id and the tasks'
        log.info("tasks.submitted", task_ids=ids)
        self._on_submitted()

    async def _check(self, task: NewTask) -> None:
        """Refuse what this server can never do."""
        check_route(task, self._settings.network.routes)
        if task.callback:
            allow_private = self._settings.webhooks.allow_private
            check_url("callback", task.callback, allow_private=allow_private)
        if (task.machine or task.platform or task.tags) and (
            not self._settings.cuckoo.wait_for_machines
        ):
            check_machines(task, await self._store.machines.list())

    # -- tasks ----------------------------------------------------------------------------------

    async def view(self, task_id: int) -> Task:
        """One task, all of its sample's hashes there; NotFound."""
        task = await self._task(task_id)
        if isinstance(task.sample, Sample) and task.sample.ssdeep is None:
            sample = await with_fuzzy_hash(self._store, self._artefacts, task.sample)
            task = msgspec.structs.replace(task, sample=sample)
        return task

    async def _task(self, task_id: int) -> Task:
        task = await self._store.tasks.get(task_id)
        if task is None:
            raise NotFound("Task not found")
        return task

    def tasks(
        self, where: TaskFilter, limit: int | None = None, offset: int = 0
    ) -> AsyncIterator[Task]:
        """Tasks in the API's order, in constant memory."""
        return self._store.tasks.each(where, limit=limit, offset=offset)

    async def reschedule(self, task_id: int, priority: int | None = None) -> int:
        """Submit a task once more; the new one's id. NotFound; Conflict while it runs."""
        new_id = await self._store.tasks.reschedule(task_id, priority)
        if new_id is None:
            raise NotFound("There is no analysis with the specified ID")
        self._announce([new_id])
        return new_id

    async def cancel(self, task_id: int) -> None:
        """Take a task out of the queue, or stop its machine and report what there is.

        NotFound; Conflict when it has come to an end.
        """
        if await self._store.tasks.cancel(task_id) is None:
            raise NotFound("Task not found")
        self._on_submitted()

    async def delete(self, task_id: int) -> None:
        """Forget a task: its row, its results, and its sample when nothing else has it.

        NotFound; Conflict while it runs or its report is made. Broken off at any point, the task
        is whole again or gone after the next start.
        """
        await delete_task(self._store, self._artefacts, task_id)

    async def _forget_binary(self, sha256: str) -> None:
        await forget_binary(self._store, self._artefacts, sha256)

    async def _is_known(self, sha256: str) -> bool:
        return await self._store.samples.find("sha256", sha256) is not None

    async def rereport(self, task_id: int) -> bool:
        """Have processing and reporting run again; False where there are no results. NotFound."""
        status = (await self._task(task_id)).status
        if (
            self.folder(task_id).is_trimmed
            or status not in PROCESSED
            or not await self._store.tasks.transition(task_id, status, Status.COMPLETED)
        ):
            return False
        self._on_submitted()
        return True

    async def reboot(self, task_id: int) -> int:
        """Submit the analysis of what starts by itself after this one; its id.

        NotFound where the task, its sample or its files are gone.
        """
        parent = await self._store.tasks.get(task_id)
        if parent is None or not isinstance(parent.sample, Sample):
            raise NotFound("Error creating reboot task")
        self.binary(parent.sample.sha256)
        if self.folder(task_id).is_trimmed:
            raise NotFound("Error creating reboot task")
        same = {name: getattr(parent, name) for name in REBOOT_KEEPS}
        new = NewTask(**same, machine=parent.machine, package=reboot.PACKAGE, custom=str(parent.id))
        [new_id] = await self._store.tasks.submit([new])
        self._announce([new_id])
        return new_id

    def folder(self, task_id: int) -> AnalysisFolder:
        """Where the results of a task lie, or would lie; a folder put there by hand counts."""
        return self._artefacts.analysis(task_id)

    # -- samples ----------------------------------------------------------------------------------

    async def sample(
        self, key: Literal["id", "md5", "sha1", "sha256"], value: str | int
    ) -> tuple[Sample, list[int]]:
        """A sample, with all of its hashes, and the ids of its tasks; NotFound."""
        found = await self._store.samples.find(key, value)
        if found is None:
            raise NotFound("File not found")
        sample, tasks = found
        return await with_fuzzy_hash(self._store, self._artefacts, sample), tasks

    def binary(self, sha256: str) -> Path:
        """The sample's file; NotFound."""
        return self._artefacts.binary(sha256)

    # -- machines and the server itself -------------------------------------------------------

    async def machines(self) -> list[Machine]:
        """Every configured machine with its state now."""
        if self._fleet is not None:
            return await self._fleet.machines()
        return await self._store.machines.list()  # as the engine's process last wrote them

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
            self._processes(),
            paused=self._disk.problem,
        )

    async def vpns(self) -> VpnStatus:
        """The state of each VPN; RooterUnavailable where the privileged helper does not answer."""
        if self._monitor is None:
            raise RooterUnavailable("Rooter not available")
        return await self._monitor.status()

    async def load(self) -> Load:
        """How busy it is, as the store has it: no hypervisor is asked, and so none waited for."""
        is_paused = not self._disk.look()
        return Load(
            await self._store.tasks.counts(),
            await self._store.machines.list(),
            self._disk.free,
            is_paused,
            self._monitor.known() if self._monitor is not None else (),
        )

    async def problems(self) -> list[str]:
        """Why the server may not take or do work; empty when it may."""
        problem = self._disk.problem
        found = [problem] if problem else []
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
