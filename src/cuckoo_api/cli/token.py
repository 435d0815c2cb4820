"""``cuckoo token``: who may use the API, besides the token of cuckoo.conf."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cuckoo_api.cli.common import complaints, console, need_cwd
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings.ini import Findings
from cuckoo_api.settings.tokens import Rights, add_token, read_tokens, revoke_token


def token(arguments: argparse.Namespace, cwd: Path) -> int:
    """Add, list or revoke."""
    need_cwd(cwd)
    match arguments.action:
        case "add":
            _add(arguments, cwd)
        case "revoke":
            revoke_token(cwd, arguments.name)
            console.print(Text(f"{arguments.name} is revoked."))
        case _:
            _list(cwd, as_json=arguments.json)
    return 0


def _add(arguments: argparse.Namespace, cwd: Path) -> None:
    made = add_token(
        cwd,
        arguments.name,
        rights=Rights(arguments.rights),
        rate=arguments.rate,
        burst=arguments.burst,
    )
    print(made)  # alone: a script takes it from here
    complaints.print("Note it down: it is kept nowhere, and cannot be shown again.")


def _list(cwd: Path, *, as_json: bool) -> None:
    findings = Findings()
    tokens = read_tokens(cwd, findings)
    if findings.faults:
        raise ConfigError(findings.faults)
    if as_json:
        fields = ("name", "rights", "rate", "burst", "added")
        print(json.dumps([{name: getattr(t, name) for name in fields} for t in tokens]))
        return
    if not tokens:
        console.print(
            "There is none but api_token in conf/cuckoo.conf; 'cuckoo token add' adds one."
        )
        return
    table = Table("name", "rights", "requests a minute", "at once", "added")
    for t in tokens:
        rate = str(t.rate) if t.rate else "no limit"
        burst = str(t.burst or t.rate) if t.rate else ""
        table.add_row(*map(Text, (t.name, t.rights, rate, burst, t.added)))
    console.print(table)
