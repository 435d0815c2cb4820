"""``cuckoo doctor``: everything that can be known to be wrong, with what to do about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from cuckoo_api.cli.common import console, need_cwd, text
from cuckoo_api.cli.doctor.data import database, disk, permissions
from cuckoo_api.cli.doctor.finding import FAIL, OK, WARN, Finding
from cuckoo_api.cli.doctor.fleet import each_machine, machines_of_server
from cuckoo_api.cli.doctor.host import look_at_host
from cuckoo_api.cli.doctor.network import port, routes
from cuckoo_api.fleet import load_plugins
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import Settings, load_settings

STYLES = {OK: "green", WARN: "yellow", FAIL: "red"}


async def doctor(arguments: argparse.Namespace, cwd: Path) -> int:
    """Look at everything; exit code 1 where something fails."""
    need_cwd(cwd)
    found = [finding async for finding in _all(cwd, deep=arguments.deep)]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        table = Table("", "about", "found", "what to do")
        for one in found:
            words = map(text, (one.about, one.text, one.advice))
            table.add_row(text(one.level, STYLES[one.level]), *words)
        console.print(table)
    return 1 if any(finding.level == FAIL for finding in found) else 0


async def _all(cwd: Path, *, deep: bool) -> AsyncIterator[Finding]:
    settings: Settings | None = None
    try:
        settings = load_settings(cwd, list(load_plugins().values()))
    except ConfigError as exc:
        for fault in exc.faults:
            yield Finding(FAIL, "configuration", fault, "mend it; the server does not start")
    else:
        for warning in settings.warnings:
            yield Finding(WARN, "configuration", warning, "correct or remove it")
        if not settings.warnings:
            yield Finding(OK, "configuration", "no fault, no warning")
    for finding in (*permissions(cwd), *look_at_host(), *disk(cwd, settings), *database(cwd)):
        yield finding
    if settings is None:
        return
    async for finding in routes(settings):
        yield finding
    try:
        with engine_lock(cwd, "a server or a command works here"):
            yield port(settings)
            async for finding in each_machine(settings, deep=deep):
                yield finding
    except ConfigError as exc:
        yield Finding(OK, "server", exc.faults[0])
        if deep:
            advice = "stop the server, or leave --deep out"
            yield Finding(FAIL, "machines", "--deep reverts machines: not beside a server", advice)
        async for finding in machines_of_server(settings):
            yield finding
