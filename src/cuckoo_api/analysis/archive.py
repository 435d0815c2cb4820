"""Archives -> samples. All parsing happens in a worker process; here its answers are counted."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import msgspec
import structlog

from cuckoo_api.analysis import frames
from cuckoo_api.analysis.filekinds import is_worth_running
from cuckoo_api.analysis.holding import Holding
from cuckoo_api.artefacts import Upload
from cuckoo_api.model.errors import BadInput, TooLarge
from cuckoo_api.model.sample import NewSample
from cuckoo_api.reporting.archives import ArchiveKind, archive_kind
from cuckoo_api.reporting.child import ENVIRONMENT, end, ending, tail
from cuckoo_api.settings import ArchivesSection

log = structlog.get_logger()

WORKER = (sys.executable, "-I", "-m", "cuckoo_api.analysis.unpack")
FREE_SIZE = 16 << 20
"""Bytes that any archive may unpack to, however small it is."""
MAX_NOTES = 20
"""Sentences about one archive; the rest is counted."""
MAX_NAME = 255
"""Characters of a member's name with the path before it."""


class Refused(BadInput):
    """Nothing of the archive is taken; the text is a sentence about it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file out of an archive that is worth running."""

    name: str
    """Its path in the archive; that of a nested archive stands before it."""
    sample: NewSample


@dataclass(slots=True)
class Budget:
    """What the archives of one submission may still unpack to."""

    files: int
    size: int


@dataclass(slots=True)
class Contents:
    """What an archive was found to hold."""

    members: list[Member] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences about what was left out."""
    is_document: bool = False
    """It is no archive, but a document or program that is packed like one: a sample itself."""


@dataclass(frozen=True, slots=True)
class _Archive:
    path: str
    """Where it lay in the one that was submitted, which itself has the empty path."""
    sample: NewSample
    kind: ArchiveKind
    depth: int


class Unpacker:
    """Takes archives apart, within the limits of one submission."""

    def __init__(
        self, holding: Holding, limits: ArchivesSection, *, worker: Sequence[str] = WORKER
    ) -> None:
        self._holding = holding
        self._limits = limits
        self._worker = worker
        self._budget = Budget(limits.max_files, limits.max_size)

    async def unpack(self, name: str, sample: NewSample) -> Contents:
        """What is worth running in an archive and in those in it, down to the configured depth.

        Raises Refused where a limit is passed or the worker fails; what was unpacked is then
        of no use.
        """
        kind = archive_kind(sample.file_type)
        if kind is None:
            return Contents(is_document=True)
        try:
            async with asyncio.timeout(self._limits.timeout):
                work = _Unpacking(self._holding, self._limits, self._worker, self._budget, name)
                contents = await work.run(_Archive("", sample, kind, 1))
        except TimeoutError:
            raise Refused(
                f"unpacking took longer than {self._limits.timeout} s ([archives] timeout)"
            ) from None
        except TooLarge as exc:
            raise Refused(str(exc)) from exc
        self._budget = work.budget
        return contents


class _Unpacking:
    """One submitted archive, on its way."""

    def __init__(
        self,
        holding: Holding,
        limits: ArchivesSection,
        worker: Sequence[str],
        budget: Budget,
        name: str,
    ) -> None:
        self._holding = holding
        self._limits = limits
        self._worker = worker
        self._name = name
        self._contents = Contents()
        self._waiting: list[_Archive] = []
        self._unnoted = 0
        self._size = 0
        self._room = 0
        self.budget = Budget(budget.files, budget.size)

    async def run(self, outermost: _Archive) -> Contents:
        self._room = max(FREE_SIZE, outermost.sample.file_size * self._limits.max_ratio)
        self._waiting.append(outermost)
        while self._waiting:
            archive = self._waiting.pop(0)
            await self._open(archive)
        if self._unnoted:
            self._contents.notes.append(f"{self._unnoted} more entries were left out")
        return self._contents

    async def _open(self, archive: _Archive) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._worker,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env=ENVIRONMENT,
        )
        stdin = cast("asyncio.StreamWriter", process.stdin)
        complaints = asyncio.create_task(tail(cast("asyncio.StreamReader", process.stderr)))
        try:
            with suppress(ConnectionError):  # it died at once; its end says why
                stdin.write(msgspec.json.encode(self._request(archive)))
                await stdin.drain()
            stdin.close()
            try:
                await self._follow(archive, cast("asyncio.StreamReader", process.stdout))
            except asyncio.IncompleteReadError:
                reason = ending(await process.wait(), await complaints)
                log.warning("archive.worker_lost", sha256=archive.sample.sha256, reason=reason)
                raise Refused("unpacking failed: it broke the process that did it") from None
        finally:
            await end(process)
            complaints.cancel()

    def _request(self, archive: _Archive) -> frames.Request:
        return frames.Request(
            path=str(self._holding.path(archive.sample).absolute()),
            formats=list(archive.kind.formats),
            filters=list(archive.kind.filters),
            passwords=list(dict.fromkeys(["infected", *self._limits.passwords])),
            parent=os.getpid(),
            memory=self._limits.memory,
            cpu=self._limits.timeout,
        )

    async def _follow(self, archive: _Archive, answers: asyncio.StreamReader) -> None:
        """Take what the worker sends. Nothing in it is believed but for its bytes."""
        name, upload = "", None
        while True:
            letter, size = frames.HEADER.unpack(await answers.readexactly(frames.HEADER.size))
            if size > max(frames.BLOCK, frames.MAX_TEXT):
                raise Refused("unpacking failed: its process sent nonsense")
            content = await answers.readexactly(size)
            match letter, upload:
                case (frames.MEMBER, None):
                    self._count(files=1)
                    name, upload = _text(content), await self._holding.receive()
                case (frames.DATA, Upload()):
                    self._count(size=size)
                    await upload.write(content)
                case (frames.END, Upload()):
                    await self._keep(archive, name, upload)
                    upload = None
                case (frames.BROKEN, Upload()):
                    await upload.discard()
                    upload = None
                    if content:
                        self._note(archive, _text(content))
                    else:
                        self.budget.files += 1  # it comes again, with another password
                case (frames.NOTE, None):
                    self._note(archive, _text(content))
                case (frames.DOCUMENT, None):
                    self._take_document(archive)
                    return
                case (frames.DONE, None):
                    return
                case _:
                    raise Refused("unpacking failed: its process sent nonsense")

    def _count(self, *, files: int = 0, size: int = 0) -> None:
        self.budget.files -= files
        self.budget.size -= size
        self._size += size
        if self.budget.files < 0:
            raise Refused(
                f"it holds more than {self._limits.max_files} files ([archives] max_files)"
            )
        if self.budget.size < 0:
            raise Refused(
                f"it unpacks to more than {self._limits.max_size} bytes ([archives] max_size)"
            )
        if self._size > self._room:
            raise Refused(
                f"it unpacks to more than {self._limits.max_ratio} times its size, "
                f"like a bomb ([archives] max_ratio)"
            )

    async def _keep(self, archive: _Archive, name: str, upload: Upload) -> None:
        """A member is whole: open it too, run it, or let it go."""
        sample = await self._holding.finish(upload)
        own = _cleaned(name) or _stem(archive.path or self._name)
        path = f"{archive.path}/{own}" if archive.path else own
        if len(path) > MAX_NAME:
            path = own[-MAX_NAME:]
        kind = archive_kind(sample.file_type)
        if kind is None:
            if is_worth_running(path, sample.file_type, sample.file_size):
                self._contents.members.append(Member(path, sample))
            else:
                await upload.discard()
        elif archive.depth < self._limits.max_depth:
            self._waiting.append(_Archive(path, sample, kind, archive.depth + 1))
        else:
            await upload.discard()
            self._note(
                archive,
                f"{own!r:.200} was left out: it is an archive at a depth of more than "
                f"{self._limits.max_depth} ([archives] max_depth)",
            )

    def _take_document(self, archive: _Archive) -> None:
        if archive.path:
            self._contents.members.append(Member(archive.path, archive.sample))
        else:
            self._contents.is_document = True

    def _note(self, archive: _Archive, text: str) -> None:
        if len(self._contents.notes) < MAX_NOTES:
            self._contents.notes.append(f"{archive.path}: {text}" if archive.path else text)
        else:
            self._unnoted += 1


def _text(content: bytes) -> str:
    """A worker's text on one line."""
    text = content.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "_" for char in text)


def _cleaned(name: str) -> str:
    """A member's path as an option of its task can hold it: a comma would end the option."""
    return name.replace("\\", "/").replace(",", "_").removeprefix("./").strip("/ ")


def _stem(name: str) -> str:
    """The name of what is in a compressed file, which does not say it."""
    last = name.rpartition("/")[2]
    return _cleaned(last.rpartition(".")[0] or last) or "sample"
