"""A submission of files, archives and lines of text -> the tasks that it becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cuckoo_api.analysis.archive import Refused, Unpacker
from cuckoo_api.analysis.holding import Holding
from cuckoo_api.analysis.strings import Hash, parse_line
from cuckoo_api.analysis.submission import base_name
from cuckoo_api.analysis.virustotal import NotFetched, VirusTotal
from cuckoo_api.artefacts import Upload
from cuckoo_api.model.errors import BadInput, CuckooError
from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import NewTask
from cuckoo_api.reporting.archives import archive_kind

MAX_HASHES = 50
"""Files that one submission may fetch by their hash."""
DOWNLOADS = 4
"""Of these at the same time."""


class Collector:
    """Collects tasks, in the order given, and a sentence for each thing that becomes none."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        holding: Holding,
        unpacker: Unpacker,
        virustotal: VirusTotal,
        *,
        slots: asyncio.Semaphore,
    ) -> None:
        """``fields`` are every task's; ``slots``: how many archives are unpacked at once."""
        self._fields = dict(fields)
        self._holding = holding
        self._unpacker = unpacker
        self._virustotal = virustotal
        self._slots = slots
        self.tasks: list[tuple[NewTask, NewSample | None]] = []
        self.errors: list[str] = []

    async def add_file(self, name: str, upload: Upload) -> None:
        """A file becomes a task; an archive, one for each member that is worth running."""
        name = base_name(name)
        sample = await self._holding.finish(upload)
        if archive_kind(sample.file_type) is None:
            self._add("file", name, sample)
        else:
            await self._add_archive(name, sample)

    async def _add_archive(self, name: str, sample: NewSample) -> None:
        try:
            async with self._slots:
                contents = await self._unpacker.unpack(name, sample)
        except Refused as exc:
            self.errors.append(f"{name}: {exc}")
            return
        if contents.is_document:
            self._add("file", name, sample)
            return
        self.errors += [f"{name}: {note}" for note in contents.notes]
        for member in contents.members:
            self._add("archive", name, member.sample, filename=member.name)
        if not contents.members and not contents.notes:
            self.errors.append(f"{name}: nothing in the archive is worth running")

    async def add_lines(self, lines: Sequence[str]) -> None:
        """A URL or a bare domain becomes a task, and a file that VirusTotal has by its hash."""
        found = [_parsed(line) for line in lines]
        hashes = list(dict.fromkeys(item for item in found if isinstance(item, Hash)))
        downloads = asyncio.Semaphore(DOWNLOADS)
        async with asyncio.TaskGroup() as group:
            fetched = {
                wanted: group.create_task(self._fetch(wanted, downloads))
                for wanted in hashes[:MAX_HASHES]
            }
        for item in found:
            if isinstance(item, BadInput):
                self.errors.append(str(item))
            elif isinstance(item, str):
                self._add("url", item)
            elif item not in fetched:
                self._no_file(item, f"there are more than {MAX_HASHES} hashes in this submission")
            elif isinstance(outcome := fetched[item].result(), NewSample):
                self._add("file", item.digest, outcome)
            else:
                self._no_file(item, str(outcome))

    async def _fetch(self, wanted: Hash, downloads: asyncio.Semaphore) -> NewSample | CuckooError:
        """The file with this hash, or why there is none."""
        async with downloads:
            try:
                upload = await self._holding.receive()
                await self._virustotal.fetch(wanted.digest, upload)
                sample = await self._holding.finish(upload)
            except CuckooError as exc:
                return exc
        if getattr(sample, wanted.algorithm) != wanted.digest:
            return NotFetched("what it sent has another hash")
        return sample

    def _no_file(self, wanted: Hash, reason: str) -> None:
        self.errors.append(
            f"Error retrieving file hash: Could not fetch hash "
            f'"{wanted.digest}" from VirusTotal: {reason}'
        )

    def _add(
        self, category: str, target: str, sample: NewSample | None = None, **options: str
    ) -> None:
        fields = {**self._fields, "options": {**self._fields.get("options", {}), **options}}
        self.tasks.append((NewTask(category=category, target=target, **fields), sample))


def _parsed(line: str) -> str | Hash | BadInput:
    try:
        return parse_line(line)
    except BadInput as exc:
        return exc
