"""What an analysis left: report, screenshots, capture."""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from aiohttp import web

from cuckoo_api.http.downloads import JPEG, ZIP, Download
from cuckoo_api.http.keys import SERVICE, SETTINGS
from cuckoo_api.http.params import path_number
from cuckoo_api.http.replies import JSON
from cuckoo_api.model.errors import BadInput, NotFound

REPORTS = {"json": JSON, "html": "text/html; charset=utf-8"}
ARCHIVES = ("all", "dropped", "package_files")
NO_REPORT = "Report not found"


async def report(request: web.Request) -> web.StreamResponse:
    """The report, as JSON unless another format is asked for."""
    form = request.match_info.get("format", "json")
    if form not in REPORTS and form not in ARCHIVES:
        raise BadInput("Invalid report format")
    task_id = path_number(request, "task_id", NO_REPORT)
    if form in ARCHIVES:
        raise NotFound(NO_REPORT)
    response = Download(request.app[SERVICE].folder(task_id).report(form), REPORTS[form])
    if form == "html":
        # the sample had its say in what the page shows; it gets no script to say it with
        response.headers["Content-Security-Policy"] = "sandbox"
    return response


async def screenshots(request: web.Request) -> web.StreamResponse:
    """All screenshots of an analysis as a zip archive."""
    folder = request.app[SERVICE].folder(_task_with_shots(request))
    shots = await asyncio.to_thread(folder.screenshots)
    with tempfile.NamedTemporaryFile(dir=request.app[SETTINGS].cuckoo.tmppath) as file:
        await asyncio.to_thread(_write_zip, file, shots)
        response = Download(Path(file.name), ZIP)
        await response.prepare(request)  # all of it, while the file is there
        await response.write_eof()
    return response


async def screenshot(request: web.Request) -> web.StreamResponse:
    """One screenshot; ``1``, ``01`` and ``0001`` alike."""
    folder = request.app[SERVICE].folder(_task_with_shots(request))
    return Download(folder.screenshot(request.match_info["shot"]), JPEG)


async def pcap(request: web.Request) -> web.StreamResponse:
    """The guest's network traffic in pcap format."""
    task_id = path_number(request, "task_id", "File not found")
    return Download(request.app[SERVICE].folder(task_id).file("dump.pcap"))


def _task_with_shots(request: web.Request) -> int:
    missing = "Task not found"
    task_id = path_number(request, "task_id", missing)
    if not (request.app[SERVICE].folder(task_id).path / "shots").is_dir():
        raise NotFound(missing)
    return task_id


def _write_zip(file: IO[bytes], paths: list[Path]) -> None:
    """Stored, not deflated: JPEGs do not get smaller."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in paths:
            archive.write(path, path.name)
    file.flush()
