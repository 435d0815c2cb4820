"""What an analysis left: reports, archives, screenshots, dumps, capture."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

from aiohttp import web

from cuckoo_api.http.archives import COMPRESSIONS, send_tar, send_zip
from cuckoo_api.http.downloads import HTML, JPEG, OCTETS, Download
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.http.params import path_number
from cuckoo_api.http.replies import JSON, reply
from cuckoo_api.http.schemas import DumpList
from cuckoo_api.model.errors import BadInput, NotFound
from cuckoo_api.reporting import elements
from cuckoo_api.reporting.extension import extensions

REPORTS = {"json": JSON, "html": HTML}
ARCHIVES = ("all", "dropped", "package_files")
NO_REPORT = "Report not found"
NO_DUMP = "Memory dump not found"
FULL_DUMP = "memory.dmp"
BLOCK = 256 << 10


async def report(request: web.Request) -> web.StreamResponse:
    """The report, as JSON unless another format is asked for, or an archive of results."""
    form = request.match_info.get("format", "json")
    if form not in REPORTS and form not in ARCHIVES and form not in own_formats():
        raise BadInput("Invalid report format")
    task_id = path_number(request, "task_id", NO_REPORT)
    if form in ARCHIVES:
        return await _archive(request, task_id, form)
    path = request.app[SERVICE].folder(task_id).report(form)
    key = request.query.get("elements")
    if key is not None:
        if form != "json":
            raise NotFound(
                f"Get specific field is not available in {form.upper()} format, "
                "try again with JSON format"
            )
        return await _stream(request, lambda: elements.element(path, key))
    response = Download(path, REPORTS.get(form) or _media_type(path))
    if form != "json":
        # the sample had its say in what the page shows; it gets no script to say it with
        response.headers["Content-Security-Policy"] = "sandbox"
    return response


async def summary(request: web.Request) -> web.StreamResponse:
    """The report without what is large in it."""
    path = request.app[SERVICE].folder(path_number(request, "task_id", NO_REPORT)).report("json")
    return await _stream(request, lambda: elements.summary(path))


async def screenshots(request: web.Request) -> web.StreamResponse:
    """All screenshots of an analysis as a zip archive."""
    folder = request.app[SERVICE].folder(_task_with_shots(request))
    return await send_zip(request, await asyncio.to_thread(folder.screenshots))


async def screenshot(request: web.Request) -> web.StreamResponse:
    """One screenshot; ``1``, ``01`` and ``0001`` alike."""
    folder = request.app[SERVICE].folder(_task_with_shots(request))
    return Download(folder.screenshot(request.match_info["shot"]), JPEG)


async def pcap(request: web.Request) -> web.StreamResponse:
    """The guest's network traffic in pcap format."""
    task_id = path_number(request, "task_id", "File not found")
    return Download(request.app[SERVICE].folder(task_id).file("dump.pcap"))


async def memory_list(request: web.Request) -> web.StreamResponse:
    """The names of the dumps of processes, without ``.dmp``."""
    folder = request.app[SERVICE].folder(path_number(request, "task_id", NO_DUMP))
    return reply(DumpList(await asyncio.to_thread(folder.dumps)))


async def memory_get(request: web.Request) -> web.StreamResponse:
    """The dump of a process, by a name of the list or by the process's id."""
    folder = request.app[SERVICE].folder(path_number(request, "task_id", NO_DUMP))
    return Download(await asyncio.to_thread(folder.dump, request.match_info["pid"]))


async def memory_full(request: web.Request) -> web.StreamResponse:
    """The dump of the whole machine."""
    task_id = path_number(request, "task_id", NO_DUMP)
    return Download(request.app[SERVICE].folder(task_id).file(FULL_DUMP, NO_DUMP))


@cache
def own_formats() -> frozenset[str]:
    """Those of installed packages; a package that is installed later counts after a restart."""
    return frozenset(extensions().files)


def _media_type(path: Path) -> str:
    return mimetypes.guess_type(path)[0] or OCTETS


async def _archive(request: web.Request, task_id: int, what: str) -> web.StreamResponse:
    folder = request.app[SERVICE].folder(task_id)
    only = {"all": "", "dropped": "files"}.get(what, what)
    members = await asyncio.to_thread(folder.members, only, (FULL_DUMP,))
    compression = request.query.get("tar", "")
    # as in Cuckoo 2, what it does not know is its default
    return await send_tar(
        request, folder, members, compression if compression in COMPRESSIONS else "bz2"
    )


async def _stream(request: web.Request, make: Callable[[], elements.Pieces]) -> web.StreamResponse:
    """JSON whose pieces lie in a mapped file: of any size, in constant memory."""
    pieces = await asyncio.to_thread(make)
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = sum(len(piece) for piece in pieces)
    await response.prepare(request)
    if request.method != "HEAD":
        for piece in pieces:
            for start in range(0, len(piece), BLOCK):
                await response.write(bytes(piece[start : start + BLOCK]))
    await response.write_eof()
    return response


def _task_with_shots(request: web.Request) -> int:
    missing = "Task not found"
    task_id = path_number(request, "task_id", missing)
    shots: Path = request.app[SERVICE].folder(task_id).path / "shots"
    if not shots.is_dir():
        raise NotFound(missing)
    return task_id
