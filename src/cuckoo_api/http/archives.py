"""Archives of results: written to a temporary file in a thread, then sent, then gone."""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, BinaryIO, Literal, cast

import zstandard
from aiohttp import web

from cuckoo_api.artefacts import AnalysisFolder, Member
from cuckoo_api.http.downloads import TAR, ZIP, Download
from cuckoo_api.http.keys import ARCHIVES, SERVICE
from cuckoo_api.model.errors import NotFound, Unavailable

COMPRESSIONS = ("bz2", "gz", "tar", "zst")
CHUNK = 1 << 20

Write = Callable[[IO[bytes], threading.Event], None]


class _GivenUp(Exception):
    """Nobody waits for the archive any more."""


async def send_tar(
    request: web.Request,
    folder: AnalysisFolder,
    members: list[Member],
    compression: str,
) -> web.StreamResponse:
    """A tar archive of the members, compressed as one of COMPRESSIONS."""

    def write(file: IO[bytes], given_up: threading.Event) -> None:
        if compression == "zst":
            with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed:
                _write_tar(cast("IO[bytes]", packed), "w|", folder, members, given_up)
            return
        mode = "" if compression == "tar" else compression
        _write_tar(file, cast("Literal['w|gz']", f"w|{mode}"), folder, members, given_up)

    size = sum(member.size for member in members)
    return await _send(request, write, TAR, size)


async def send_zip(request: web.Request, paths: Iterable[Path]) -> web.StreamResponse:
    """A zip of pictures. Stored, not deflated: JPEGs do not get smaller."""
    listed = list(paths)

    def write(file: IO[bytes], given_up: threading.Event) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            for path in listed:
                if given_up.is_set():
                    raise _GivenUp
                archive.write(path, path.name)

    return await _send(request, write, ZIP, 0)


async def _send(
    request: web.Request, write: Write, content_type: str, size: int
) -> web.StreamResponse:
    turns = request.app[ARCHIVES]
    temporary = request.app[SERVICE].settings.cuckoo.tmppath
    async with _spooled(write, temporary, turns, size) as path:
        response = Download(path, content_type)
        await response.prepare(request)  # all of it, while the file is there
        await response.write_eof()
    return response


@asynccontextmanager
async def _spooled(
    write: Write, temporary: Path | None, turns: asyncio.Semaphore, size: int
) -> AsyncIterator[Path]:
    """The written file, until left. Its thread ends soon when the request does."""
    with tempfile.NamedTemporaryFile(dir=temporary, prefix="cuckoo-archive-") as file:
        if shutil.disk_usage(file.name).free < size:
            raise Unavailable(
                "There is no room for the archive in the server's temporary folder "
                "([cuckoo] tmppath); fetch the files one by one"
            )
        given_up = threading.Event()
        async with turns:
            work = asyncio.ensure_future(asyncio.to_thread(write, file, given_up))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                given_up.set()
                await asyncio.wait({work})
                raise
        file.flush()
        yield Path(file.name)


def _write_tar(
    file: IO[bytes],
    mode: Literal["w|", "w|gz"],
    folder: AnalysisFolder,
    members: list[Member],
    given_up: threading.Event,
) -> None:
    with tarfile.open(fileobj=file, mode=mode, bufsize=CHUNK) as archive:
        for member in members:
            if given_up.is_set():
                raise _GivenUp
            _add(archive, folder, member)


def _add(archive: tarfile.TarFile, folder: AnalysisFolder, member: Member) -> None:
    entry = tarfile.TarInfo(member.name)
    entry.mtime = member.changed
    if member.is_folder:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
        return
    try:
        with folder.open_member(member.name) as source:
            # what it has now: a running analysis goes on writing
            entry.size = _size(source)
            archive.addfile(entry, source)
    except NotFound:
        pass  # removed meanwhile


def _size(source: BinaryIO) -> int:
    size = source.seek(0, 2)
    source.seek(0)
    return size
