"""Paths and query strings -> checked values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from aiohttp import web

from cuckoo_api.analysis.submission import parse_int, parse_tags
from cuckoo_api.model.errors import BadInput, NotFound
from cuckoo_api.model.task import DATE_FORMAT, Status
from cuckoo_api.store import TaskFilter

MAX_ID = (1 << 63) - 1
MAX_TEXT = 4096
LAST_SECOND = 253402300799
"""9999-12-31 23:59:59."""


def path_number(request: web.Request, name: str, missing: str) -> int:
    """A number of the path, which is digits by its route; NotFound when nothing can have it."""
    text = request.match_info[name]
    if len(text) > 19 or int(text) > MAX_ID:
        raise NotFound(missing)
    return int(text)


def task_filter(query: Mapping[str, str]) -> TaskFilter:
    """The filters of ``/tasks/list``. An empty one is none; BadInput names one that is wrong."""
    for name, text in query.items():
        if len(text) > MAX_TEXT or not _is_text(text):
            raise BadInput(f"{name:.40}: expected at most {MAX_TEXT} characters of valid text")
    return TaskFilter(
        status=_status(query.get("status", "")),
        owner=query.get("owner") or None,
        completed_after=_date(query.get("completed_after", "")),
        sample=_number(query, "sample"),
        target=query.get("target") or None,
        category=query.get("category") or None,
        tags=tuple(parse_tags(query.get("tags", ""))),
        machine=query.get("machine") or None,
        after_id=_number(query, "after_id"),
    )


def _is_text(text: str) -> bool:
    return "\0" not in text and all(not "\ud800" <= c <= "\udfff" for c in text)


def _status(text: str) -> Status | None:
    if not text:
        return None
    try:
        return Status(text)
    except ValueError:
        raise BadInput(f"status: expected one of {', '.join(Status)}; got {text!r:.80}") from None


def _date(text: str) -> str | None:
    if not text:
        return None
    seconds = parse_int("completed_after", text, low=0, high=LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).strftime(DATE_FORMAT)


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    return parse_int(name, text, low=0, high=MAX_ID) if text else None
