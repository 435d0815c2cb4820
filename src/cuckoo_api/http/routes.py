"""Every URL, on one page. Each exists bare and under ``/v1``, with or without a trailing slash."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from cuckoo_api.analysis.system import SystemStatus
from cuckoo_api.http import artefacts, docs, events, files, machines, metrics, system, tasks
from cuckoo_api.http.docs import SCRIPT, SCRIPTS, STYLE, STYLES
from cuckoo_api.http.downloads import HTML, JPEG, OCTETS, TAR, ZIP
from cuckoo_api.http.events import EVENT_STREAM
from cuckoo_api.http.metrics import PLAIN
from cuckoo_api.http.replies import JSON, Message
from cuckoo_api.http.schemas import (
    Done,
    DumpList,
    FileForm,
    Health,
    Readiness,
    RebootCreated,
    Rereported,
    Rescheduled,
    SampleView,
    SubmitForm,
    Submitted,
    Task,
    TaskCreated,
    UrlForm,
)
from cuckoo_api.model.machine import Machine
from cuckoo_api.network.vpn import VpnStatus
from cuckoo_api.settings import Rights
from cuckoo_api.store import TaskFilter

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PREFIXES = ("", "/v1")
DIGITS = "[0-9]+"
WORD = "[^{}/]+"
HASHES = "md5|sha1|sha256"

PATTERNS = {
    "task_id": DIGITS,
    "priority": DIGITS,
    "sample_id": DIGITS,
    "limit": DIGITS,
    "offset": DIGITS,
    "hash": HASHES,
    "value": WORD,
    "sha256": WORD,
    "name": WORD,
    "shot": WORD,
    "format": WORD,
    "pid": WORD,
    "script": "|".join(map(re.escape, SCRIPTS)),
    "style": "|".join(map(re.escape, STYLES)),
}
"""What a variable part of a path may hold; anything else is no address of this server."""

FILTERS = TaskFilter.__struct_fields__
"""Of ``/tasks/list``."""


@dataclass(frozen=True, slots=True)
class Route:
    """One URL: who serves it, and what it answers."""

    method: str
    path: str
    handler: Handler
    answer: type
    """The answer's type, or that of what it wraps; ``bytes`` and ``dict`` where it is a file."""
    wrap: str = ""
    """``task``: an object with one key ``task``; ``tasks[]``: one whose key holds a list."""
    media: str = JSON
    also: tuple[str, ...] = ()
    """Media types of its other formats."""
    form: type[msgspec.Struct] | None = None
    query: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()
    """Beyond those that every route, or every one with a form or a variable part, has."""
    rights: Rights = Rights.READ
    """What the token must have. More than ``read`` wherever something changes."""
    is_file: bool = False
    is_open: bool = False
    """No authentication."""


def _file(
    path: str,
    handler: Handler,
    answer: type,
    media: str,
    *errors: int,
    query: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    is_open: bool = False,
) -> Route:
    return Route(
        "GET",
        path,
        handler,
        answer,
        media=media,
        also=also,
        query=query,
        errors=errors,
        is_file=True,
        is_open=is_open,
    )


ROUTES = (
    Route(
        "POST",
        "/tasks/create/file",
        tasks.create_file,
        TaskCreated,
        form=FileForm,
        rights=Rights.SUBMIT,
    ),
    Route(
        "POST",
        "/tasks/create/url",
        tasks.create_url,
        TaskCreated,
        form=UrlForm,
        rights=Rights.SUBMIT,
    ),
    Route(
        "POST",
        "/tasks/create/submit",
        tasks.create_submit,
        Submitted,
        form=SubmitForm,
        errors=(500,),
        rights=Rights.SUBMIT,
    ),
    Route("GET", "/tasks/list", tasks.list_tasks, Task, "tasks[]", query=FILTERS),
    Route("GET", "/tasks/list/{limit}", tasks.list_tasks, Task, "tasks[]", query=FILTERS),
    Route("GET", "/tasks/list/{limit}/{offset}", tasks.list_tasks, Task, "tasks[]", query=FILTERS),
    Route("GET", "/tasks/sample/{sample_id}", tasks.list_of_sample, Task, "tasks[]"),
    Route("GET", "/tasks/view/{task_id}", tasks.view, Task, "task"),
    Route(
        "GET",
        "/tasks/reschedule/{task_id}",
        tasks.reschedule,
        Rescheduled,
        errors=(409,),
        rights=Rights.SUBMIT,
    ),
    Route(
        "GET",
        "/tasks/reschedule/{task_id}/{priority}",
        tasks.reschedule,
        Rescheduled,
        errors=(400, 409),
        rights=Rights.SUBMIT,
    ),
    Route("GET", "/tasks/delete/{task_id}", tasks.delete, Done, errors=(500,), rights=Rights.ADMIN),
    Route(
        "POST", "/tasks/cancel/{task_id}", tasks.cancel, Done, errors=(409,), rights=Rights.SUBMIT
    ),
    Route("GET", "/tasks/rereport/{task_id}", tasks.rereport, Rereported, rights=Rights.SUBMIT),
    Route("GET", "/tasks/reboot/{task_id}", tasks.reboot, RebootCreated, rights=Rights.SUBMIT),
    _file("/tasks/report/{task_id}", artefacts.report, dict, JSON, query=("elements",)),
    _file(
        "/tasks/report/{task_id}/{format}",
        artefacts.report,
        dict,
        JSON,
        400,
        503,
        query=("elements", "tar"),
        also=(HTML, TAR),
    ),
    _file("/tasks/summary/{task_id}", artefacts.summary, dict, JSON),
    _file("/tasks/screenshots/{task_id}", artefacts.screenshots, bytes, ZIP),
    _file("/tasks/screenshots/{task_id}/{shot}", artefacts.screenshot, bytes, JPEG),
    Route("GET", "/files/view/{hash}/{value}", files.view, SampleView, "sample"),
    Route(
        "GET", "/files/view/id/{sample_id}", files.view_by_id, SampleView, "sample", errors=(400,)
    ),
    _file("/files/get/{sha256}", files.get, bytes, OCTETS),
    _file("/pcap/get/{task_id}", artefacts.pcap, bytes, OCTETS),
    Route("GET", "/memory/list/{task_id}", artefacts.memory_list, DumpList),
    _file("/memory/get/{task_id}/{pid}", artefacts.memory_get, bytes, OCTETS),
    _file("/memory/full/{task_id}", artefacts.memory_full, bytes, OCTETS),
    Route("GET", "/machines/list", machines.list_machines, Machine, "machines[]"),
    Route("GET", "/machines/view/{name}", machines.view, Machine, "machine"),
    Route("GET", "/cuckoo/status", system.status, SystemStatus),
    Route("GET", "/vpn/status", system.vpn_status, VpnStatus, errors=(500,)),
    Route("GET", "/exit", system.stop, Message, errors=(500,), rights=Rights.ADMIN),
    Route("GET", "/healthz", system.alive, Health, is_open=True),
    Route("GET", "/readyz", system.ready, Readiness, errors=(503,), is_open=True),
    Route(
        "GET",
        "/events",
        events.stream,
        bytes,
        media=EVENT_STREAM,
        query=("last_event_id",),
        errors=(503,),
    ),
    Route("GET", "/metrics", metrics.show, bytes, media=PLAIN),
    Route("GET", "/openapi.json", system.openapi, dict),
    Route("GET", "/docs", docs.page, bytes, media=HTML, is_open=True),
    _file("/docs/{script}", docs.script, bytes, SCRIPT, is_open=True),
    _file("/docs/{style}", docs.style, bytes, STYLE, is_open=True),
)


def add_routes(router: web.UrlDispatcher) -> None:
    """Register every route in all its spellings."""
    for route in ROUTES:
        path = route.path
        for name, pattern in PATTERNS.items():
            path = path.replace(f"{{{name}}}", f"{{{name}:{pattern}}}")
        for prefix in PREFIXES:
            for slash in ("", "/"):
                if route.method == "GET":
                    # Cuckoo 2 has GET for changes too: HEAD would do the same
                    allow_head = route.rights is Rights.READ
                    router.add_get(prefix + path + slash, route.handler, allow_head=allow_head)
                else:
                    router.add_route(route.method, prefix + path + slash, route.handler)
