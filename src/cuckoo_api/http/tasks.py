"""Submissions, and tasks as they stand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
from aiohttp import hdrs, web

from cuckoo_api.analysis.submission import parse_int
from cuckoo_api.http.forms import read_form
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.http.params import path_number, task_filter
from cuckoo_api.http.replies import JSON, encode, reply
from cuckoo_api.http.schemas import (
    Done,
    RebootCreated,
    Rereported,
    Rescheduled,
    Submitted,
    TaskCreated,
)
from cuckoo_api.model.errors import BadInput, Conflict, CuckooError
from cuckoo_api.model.task import Status, Task
from cuckoo_api.store import TaskFilter

LARGEST_BODY = 1000
"""Tasks in one answer with a Content-Length; more, or no limit, are streamed."""
FLUSH = 64 << 10

LEGACY = frozenset(
    {
        Status.CANCELLED,
        Status.FAILED_ANALYSIS,
        Status.FAILED_PROCESSING,
        Status.FAILED_REPORTING,
    }
)
"""What clients that know four states take for ``reported``."""


async def create_file(request: web.Request) -> web.StreamResponse:
    """Submit one or more files for analysis."""
    service = request.app[SERVICE]
    async with AsyncExitStack() as uploads:
        form = await read_form(request, lambda: uploads.enter_async_context(service.receive()))
        if not form.files:
            raise BadInput(
                "file: expected a part named 'file' with a file name, sent as "
                "multipart/form-data (curl -F file=@sample.exe)"
            )
        files = [(file.name, file.upload) for file in form.files]
        task_ids = await service.submit_files(files, form.fields)
    return reply(TaskCreated(task_ids[0], msgspec.UNSET if len(task_ids) == 1 else task_ids))


async def create_url(request: web.Request) -> web.StreamResponse:
    """Submit a URL for analysis."""
    form = await read_form(request)
    if "url" not in form.fields:
        raise BadInput("url: expected the address to open in the guest")
    task_id = await request.app[SERVICE].submit_url(form.fields["url"], form.fields)
    return reply(TaskCreated(task_id))


async def create_submit(request: web.Request) -> web.StreamResponse:
    """Submit files, archives, and lines that are URLs, domains or hashes."""
    service = request.app[SERVICE]
    async with AsyncExitStack() as uploads:
        form = await read_form(
            request,
            lambda: uploads.enter_async_context(service.receive()),
            file_fields=("file", "files"),
        )
        files = [(file.name, file.upload) for file in form.files]
        done = await service.submit(files, form.fields.get("strings", ""), form.fields)
    return reply(Submitted(submit_id=done.submit_id, task_ids=done.task_ids, errors=done.errors))


async def view(request: web.Request) -> web.StreamResponse:
    """One task."""
    task = await request.app[SERVICE].view(path_number(request, "task_id", "Task not found"))
    return reply({"task": _shown(task, legacy=_legacy(request))})


async def reschedule(request: web.Request) -> web.StreamResponse:
    """Submit a task once more, with its own priority or another; the old one is ``recovered``."""
    task_id = path_number(request, "task_id", "There is no analysis with the specified ID")
    priority = None
    if "priority" in request.match_info:
        priority = parse_int("priority", request.match_info["priority"], low=1)
    new_id = await request.app[SERVICE].reschedule(task_id, priority)
    return reply(Rescheduled(task_id=new_id))


async def delete(request: web.Request) -> web.StreamResponse:
    """Remove a task, its results, and its sample when no other task has it."""
    try:
        await request.app[SERVICE].delete(path_number(request, "task_id", "Task not found"))
    except Conflict as exc:
        raise CuckooError(str(exc)) from exc  # 500, as Cuckoo 2 has it: clients know it
    return reply(Done())


async def cancel(request: web.Request) -> web.StreamResponse:
    """Take a task out of the queue, or stop its machine and report what was collected."""
    await request.app[SERVICE].cancel(path_number(request, "task_id", "Task not found"))
    return reply(Done())


async def rereport(request: web.Request) -> web.StreamResponse:
    """Run processing and reporting again; ``false`` for a task without results."""
    task_id = path_number(request, "task_id", "Task not found")
    return reply(Rereported(await request.app[SERVICE].rereport(task_id)))


async def reboot(request: web.Request) -> web.StreamResponse:
    """Analyse what starts by itself after an earlier analysis, once the guest is restarted."""
    task_id = path_number(request, "task_id", "Error creating reboot task")
    new_id = await request.app[SERVICE].reboot(task_id)
    return reply(RebootCreated(task_id=task_id, reboot_id=new_id))


async def list_tasks(request: web.Request) -> web.StreamResponse:
    """Tasks by completion date, those not completed first; all, or a page of them."""
    limit = offset = None
    if "limit" in request.match_info:
        limit = path_number(request, "limit", "The limit is too large")
    if "offset" in request.match_info:
        offset = path_number(request, "offset", "The offset is too large")
    return await _listed(request, task_filter(request.query), limit, offset or 0)


async def list_of_sample(request: web.Request) -> web.StreamResponse:
    """The tasks of one sample."""
    sample = path_number(request, "sample_id", "File not found")
    return await _listed(request, TaskFilter(sample=sample), None, 0)


async def _listed(
    request: web.Request, where: TaskFilter, limit: int | None, offset: int
) -> web.StreamResponse:
    legacy = _legacy(request)
    tasks = request.app[SERVICE].tasks(where, limit, offset)
    if limit is not None and limit <= LARGEST_BODY:
        return reply({"tasks": [_shown(task, legacy=legacy) async for task in tasks]})
    return await _stream(request, tasks, legacy=legacy)


async def _stream(
    request: web.Request, tasks: AsyncIterator[Task], *, legacy: bool
) -> web.StreamResponse:
    """A list of any length in constant memory."""
    response = web.StreamResponse(headers={"Content-Type": JSON})
    if request.method == hdrs.METH_HEAD:
        return response
    buffer = bytearray(b'{"tasks":[')
    empty = len(buffer)
    async for task in tasks:
        if len(buffer) != empty:
            buffer += b","
        buffer += encode(_shown(task, legacy=legacy))
        if len(buffer) >= FLUSH:
            # not before: what fails at the first row still gets an answer of its own
            if not response.prepared:
                await response.prepare(request)
            await response.write(bytes(buffer))
            buffer.clear()
            empty = -1
    buffer += b"]}"
    if not response.prepared:
        return web.Response(body=bytes(buffer), content_type=JSON)
    await response.write_eof(bytes(buffer))
    return response


def _legacy(request: web.Request) -> bool:
    return request.app[SERVICE].settings.api.legacy_statuses


def _shown(task: Task, *, legacy: bool) -> Task:
    if legacy and task.status in LEGACY:
        return msgspec.structs.replace(task, status=Status.REPORTED)
    return task
