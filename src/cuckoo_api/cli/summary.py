"""A report's gist on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cuckoo_api.cli.common import text
from cuckoo_api.reporting.summary import Summary, summarise

MAX_LINES = 15
_COLOURS = {1: "cyan", 2: "yellow", 3: "red"}


def print_summary(console: Console, report: Mapping[str, Any]) -> None:
    """Print it. Everything from the guest goes out as plain text."""
    summary = summarise(report)
    info = report.get("info") or {}
    console.rule(f"Task {info.get('id', '?')}: score {summary.score:g} of 10")
    _signatures(console, summary)
    _block(
        console,
        "Processes",
        ("  " * p.depth + f"{p.command_line or p.name} ({p.pid})" for p in summary.processes),
    )
    _block(console, "Files written", summary.files_written)
    _block(console, "Files deleted", summary.files_deleted)
    _block(console, "Names looked up", summary.dns)
    _block(console, "HTTP requests", summary.http)
    _block(console, "Hosts", summary.hosts)
    _block(
        console,
        "Dropped files",
        (f"{d.filepath}  {d.size} bytes, {d.type}" for d in summary.dropped),
    )
    console.print(text(f"Screenshots: {summary.screenshots}"))
    if summary.dumps:
        console.print(text(f"Dumps of processes: {summary.dumps}"))
    _block(console, "Errors", summary.errors)


def _signatures(console: Console, summary: Summary) -> None:
    table = Table("what it did", "evidence", title="Signatures", title_justify="left", box=None)
    for signature in summary.signatures:
        colour = _COLOURS.get(signature.severity, "white")
        evidence = Text("\n").join(text(line) for line in signature.evidence[:3])
        table.add_row(text(signature.description or signature.name, colour), evidence)
    if summary.signatures:
        console.print(table)


def _block(console: Console, title: str, lines: Iterable[str]) -> None:
    found = list(lines)
    if not found:
        return
    console.print(text(f"{title} ({len(found)})", "bold"))
    for line in found[:MAX_LINES]:
        console.print(text(f"  {line}"), overflow="ellipsis", no_wrap=True)
    if len(found) > MAX_LINES:
        console.print(text(f"  … {len(found) - MAX_LINES} more in the report"))
