"""``reports/report.html``: one page that holds all it shows, to be read anywhere and mailed.

Whatever stands on it may have been chosen by a sample. So every value goes through one hole,
``_shown``, which makes it printable and short, and Jinja escapes it after that; pictures are
decoded and drawn anew; and a policy in the page allows no script at all, should both fail.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from cuckoo_api.reporting.bounds import visible
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Request
from cuckoo_api.reporting.reporters.output import errors, info, part, replacing

MAX_PAGE = 12 << 20
"""Bytes after which no more rows are written; the ends of the tables still are."""
MAX_VALUE = 600
MAX_PICTURES = 12
MAX_PICTURE_FILE = 8 << 20
MAX_PIXELS = 16_000_000
PICTURE_SIZE = (960, 960)

PAGE = Path(__file__).parent / "page"
CHAPTERS = (
    ("signatures", "Signatures"),
    ("screenshots", "Screenshots"),
    ("processes", "Processes"),
    ("timeline", "Timeline"),
    ("behaviour", "Files and more"),
    ("network", "Network"),
    ("dropped", "Dropped files"),
    ("procmemory", "Process memory"),
    ("static", "Static analysis"),
    ("errors", "Errors"),
)
TITLES = {
    "command_line": "Command",
    "dropped_executed": "Written and run",
    "file_created": "File created",
    "file_written": "File written",
    "file_moved": "File moved",
    "file_copied": "File copied",
    "file_deleted": "File deleted",
    "file_linked": "File linked",
    "permissions_changed": "Permissions changed",
    "owner_changed": "Owner changed",
    "directory_created": "Folder created",
    "directory_removed": "Folder removed",
    "regkey_written": "Registry key written",
    "regkey_deleted": "Registry key deleted",
    "mutex": "Lock taken",
    "module_loaded": "Module loaded",
    "resolves_host": "Name asked for",
    "connects_host": "Connection",
    "connects_ip": "Address connected to",
    "listens_on": "Listened on",
    "fetches_url": "URL asked for",
    "downloads_file": "URL saved",
    "wmi_query": "WMI query",
    "file_failed": "File not opened",
    "file_read": "File read",
    "file_opened": "File opened",
    "file_exists": "File looked for",
    "directory_enumerated": "Folder listed",
    "dll_loaded": "Library loaded",
    "regkey_opened": "Registry key opened",
    "regkey_read": "Registry key read",
}
"""The summary's categories in the order in which they are worth reading."""
_ORDER = {category: place for place, category in enumerate(TITLES)}


class _Process(msgspec.Struct, frozen=True):
    """A node of the process tree, as far as the page shows it."""

    pid: int = 0
    process_name: str = ""
    command_line: str = ""
    first_seen: float = 0.0
    autostart: dict[str, Any] | None = None
    ended: float | None = None
    exit_code: int | None = None
    children: list[_Process] = []


class _Behavior(msgspec.Struct, frozen=True):
    """``behavior`` without the calls, which are never decoded."""

    processtree: list[_Process] = []
    summary: dict[str, list[Any]] = {}
    timeline: list[dict[str, Any]] = []


class Rows:
    """The items that fit on the page; ``left`` is how many do not, after they were taken."""

    def __init__(self, items: Sequence[Any], limit: int, file: BinaryIO) -> None:
        self._items = items
        self._limit = limit
        self._file = file
        self.left = 0

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items):
            if number >= self._limit or self._file.tell() > MAX_PAGE:
                self.left = len(self._items) - number
                return
            yield item


def write_html_report(request: Request, messages: list[str]) -> None:
    """Write the page whole, or leave the earlier one. Raises OSError."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, finalize=_shown, auto_reload=False
    )
    environment.filters |= {
        "size": _size, "seconds": _seconds, "since": _since, "moment": _moment, "ends": _ends,
        "ending": _ending, "evidence": _evidence, "rules": _rules, "words": _words,
    }  # fmt: skip
    template = environment.get_template("report.html.jinja")
    evidence = Evidence(Path(request.folder), request.size_limit)
    with replacing(Path(request.folder) / "reports" / "report.html") as file:
        for text in template.generate(
            _facts(request, messages),
            rows=lambda items, limit: Rows(items, limit, file),
            pictures=lambda shots: _pictures(evidence, shots),
        ):
            file.write(text.encode("utf-8", "backslashreplace"))


def _facts(request: Request, messages: list[str]) -> dict[str, Any]:
    behavior = msgspec.json.decode(part(request, "behavior"), type=_Behavior)
    target = msgspec.json.decode(part(request, "target"))
    screenshots = msgspec.json.decode(part(request, "screenshots"))
    dumps = msgspec.json.decode(part(request, "procmemory"))
    style = (PAGE / "report.css").read_text("utf-8")
    processes = list(_flat(behavior.processtree))
    static = list(_leaves(msgspec.json.decode(part(request, "static"))))
    absent = {
        name
        for name, shown in (
            ("screenshots", screenshots),
            ("procmemory", dumps),
            ("static", static),
        )
        if not shown
    }
    return {
        "info": info(request),
        "name": request.job.name if request.job.category != "url" else request.job.target,
        "target": target,
        "file": target.get("file", {}),
        "signatures": msgspec.json.decode(part(request, "signatures")),
        "screenshots": screenshots,
        "dumps": dumps,
        "processes": processes,
        "began": min((process.first_seen for _, process in processes), default=0.0),
        "timeline": behavior.timeline,
        "summary": dict(sorted(behavior.summary.items(), key=_worth)),
        "network": msgspec.json.decode(part(request, "network")),
        "dropped": msgspec.json.decode(part(request, "dropped")),
        "errors": errors(request, messages),
        "titles": TITLES,
        "static": static,
        "chapters": [item for item in CHAPTERS if item[0] not in absent],
        "style": Markup(style),  # noqa: S704 - a file of ours
        "policy": policy(style),
    }


def policy(style: str) -> str:
    """What the page may do: show pictures that it holds, in its own style, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _worth(item: tuple[str, Any]) -> int:
    return _ORDER.get(item[0], len(_ORDER))


def _flat(processes: list[_Process], depth: int = 0) -> Iterator[tuple[int, _Process]]:
    """Parents before their children; the processor bounds the depth."""
    for process in processes:
        yield depth, process
        yield from _flat(process.children, depth + 1)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Whatever a format's part of ``static`` holds, in lines of a name and a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield path, ", ".join(f"{name} {inner}" for name, inner in _leaves(item))
    elif isinstance(value, list):
        if value:
            yield path, ", ".join(map(str, value))
    elif value not in (None, ""):
        yield path, str(value)


def _pictures(evidence: Evidence, shots: list[dict[str, Any]]) -> Iterator[tuple[str, Markup]]:
    """Some of the screenshots, evenly chosen, the first and the last among them, drawn anew."""
    count = min(len(shots), MAX_PICTURES)
    last = len(shots) - 1
    for number in sorted({round(i * last / max(1, count - 1)) for i in range(count)}):
        path = shots[number]["path"]
        data = _picture(evidence.read(path, MAX_PICTURE_FILE))
        if data:
            yield path, Markup(base64.b64encode(data).decode())  # noqa: S704 - letters only


def _picture(data: bytes) -> bytes:
    """A small JPEG of a picture that a guest may have made; empty when it is none."""
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return b""
            image.thumbnail(PICTURE_SIZE)
            image.convert("RGB").save(out, "JPEG", quality=70, optimize=True)
    except (OSError, ValueError, SyntaxError):
        return b""
    return out.getvalue()


def _shown(value: Any) -> Any:
    """What stands on the page for a value: a short printable text, or markup of ours."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else visible(str(value), MAX_VALUE)


def _rules(matches: Any) -> str:
    """The YARA rules that matched."""
    return ", ".join(str(rule["name"]) for rule in matches) if isinstance(matches, list) else ""


def _words(value: Any) -> str:
    """An entry of the summary: a text, or a pair of an old path and a new one."""
    return " → ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _evidence(mark: dict[str, Any]) -> str:
    """A mark in one line: the thing itself, and what a signature says about it."""
    return " · ".join(str(mark[key]) for key in ("ioc", "description") if mark.get(key))


def _ends(item: dict[str, Any], host: str, port: str) -> str:
    address = str(item.get(host, ""))
    if port not in item:
        return address
    return f"[{address}]:{item[port]}" if ":" in address else f"{address}:{item[port]}"


def _size(value: Any) -> str:
    if not isinstance(value, int):
        return ""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def _seconds(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + " s" if isinstance(value, int | float) else ""


def _since(value: float, began: float) -> str:
    return f"{value - began:+.3f} s"


def _moment(value: float) -> str:
    try:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _ending(code: int | None) -> str:
    if code is None:
        return "still running at the end"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
