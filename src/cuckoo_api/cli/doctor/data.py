"""Files, room and the database of a working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cuckoo_api.analysis.system import free_bytes
from cuckoo_api.cli.doctor.finding import FAIL, OK, WARN, Finding
from cuckoo_api.model.errors import CuckooError
from cuckoo_api.settings import Settings, database_url
from cuckoo_api.store import database_faults, database_path, pending_migration

WRITTEN = ("", "log", "storage", "storage/analyses", "storage/binaries")
"""Folders in which the server works."""


def permissions(cwd: Path) -> Iterator[Finding]:
    """Secrets are the owner's alone, and the server may write where it works."""
    before = True
    for path in (cwd / "conf", *sorted((cwd / "conf").glob("*.conf")), cwd / "cuckoo.db"):
        if path.is_symlink() and path.name == "routing.conf":
            continue  # the rooter's file, which holds no secret
        if path.exists() and (mode := path.stat().st_mode & 0o077):
            before = False
            text = f"{path} is open to others (mode {mode | 0o700:o})"
            yield Finding(WARN, "permissions", text, f"chmod go-rwx {path}")
    for path in (cwd / name for name in WRITTEN):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            before = False
            yield Finding(FAIL, "permissions", f"{path} cannot be written", "run as its owner")
    if before:
        yield Finding(OK, "permissions", "secrets are private, the folders can be written")


def disk(cwd: Path, settings: Settings | None) -> Iterator[Finding]:
    """Whether there is room; None: nothing is known of what is wanted."""
    storage = cwd / "storage"
    if not storage.is_dir():
        yield Finding(FAIL, "disk", f"{storage} is missing", f"cuckoo --cwd {cwd} init")
        return
    free, wanted = free_bytes(storage), settings.cuckoo.freespace if settings else 0
    level = FAIL if free < wanted else WARN if free < 2 * wanted else OK
    advice = "" if level == OK else "make room: cuckoo clean --older-than 30d"
    shown = f"{free >> 20} MiB free, [cuckoo] freespace asks for {wanted >> 20}"
    yield Finding(level, "disk", shown, advice)
    numbers = os.statvfs(storage)
    if numbers.f_files and numbers.f_favail < numbers.f_files // 20:
        yield Finding(WARN, "disk", f"{numbers.f_favail} files left (inodes)", advice)


def database(cwd: Path) -> Iterator[Finding]:
    """Whether it is whole, and of this version."""
    try:
        path = database_path(database_url(cwd))
        if not path.exists():
            yield Finding(OK, "database", "there is none yet; the first start makes it")
            return
        damage = database_faults(path)
        pending = "" if damage else pending_migration(path)
    except CuckooError as exc:
        yield Finding(FAIL, "database", str(exc), "restore a backup: cuckoo restore")
        return
    for fault in damage:
        yield Finding(FAIL, "database", fault, "restore a backup: cuckoo restore")
    if pending:
        yield Finding(WARN, "database", f"goes {pending}", "cuckoo backup, then start the server")
    elif not damage:
        yield Finding(OK, "database", "whole, and of this version")
