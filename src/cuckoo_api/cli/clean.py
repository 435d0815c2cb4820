"""``cuckoo clean``: remove what is old, beside a running server or without one."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from cuckoo_api.analysis.doorbell import Doorbell
from cuckoo_api.analysis.retention import Rule, clean
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.cli.common import complaints, console, need_cwd, text
from cuckoo_api.cli.terminal import size_text
from cuckoo_api.model.task import FINAL, Status
from cuckoo_api.settings import database_url
from cuckoo_api.store import Store


async def clean_up(arguments: argparse.Namespace, cwd: Path) -> int:
    """Apply the rule that the options make; say what went."""
    need_cwd(cwd)
    rule = Rule(
        seconds=arguments.older_than,
        statuses=frozenset(map(Status, arguments.status)) or FINAL,
        larger_than=arguments.larger_than,
        keep_reports=arguments.keep_reports,
    )
    ids: list[int] = []
    size = 0
    bell = Doorbell(cwd)
    artefacts = Artefacts(cwd / "storage")
    store = await Store.open(database_url(cwd))
    store.database.on_event = bell.ring  # a server tells its clients
    try:
        with complaints.status("Looking for what is old") as status:
            now = time.time()
            async for gone in clean(store, artefacts, rule, now=now, dry_run=arguments.dry_run):
                ids.append(gone.task_id)
                size += gone.size
                status.update(text(f"{len(ids)} tasks, {size_text(size)}"))
    finally:
        await artefacts.close()
        await store.close()
        bell.close()
    if arguments.json:
        print(json.dumps({"tasks": ids, "bytes": size, "dry_run": arguments.dry_run}))
        return 0
    what = "the files of " if rule.keep_reports else ""
    done = "Would remove" if arguments.dry_run else "Removed"
    console.print(text(f"{done} {what}{len(ids)} tasks, {size_text(size)}."))
    return 0
