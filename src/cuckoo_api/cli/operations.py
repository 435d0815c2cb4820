"""What the commands that keep a server running take. It imports nothing: --help is quick."""

from __future__ import annotations

import argparse
import re
from typing import Any

RAW: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}

CLEAN_EPILOG = """\
examples:
  cuckoo clean --older-than 90d --dry-run
  cuckoo clean --older-than 30d --keep-reports --larger-than 1G
  cuckoo clean --older-than 1d --status cancelled --status failed_analysis
"""
FINAL = (
    "reported",
    "recovered",
    "cancelled",
    "failed_analysis",
    "failed_processing",
    "failed_reporting",
)
AGES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
BACKUP_EPILOG = """\
examples:
  cuckoo backup /backup/cuckoo-$(date +%F).tar.zst
  cuckoo backup --no-analyses /backup/small.tar.gz
"""
RESTORE_EPILOG = """\
example:
  cuckoo --cwd /srv/cuckoo restore /backup/cuckoo-2026-01-31.tar.zst
"""

Commands = Any  # argparse's own type of it is private


def add_operations_commands(commands: Commands) -> None:
    """Doctor, reload, clean, backup, restore."""
    doctor = commands.add_parser(
        "doctor",
        help="look for what is wrong, and say what to do",
        description="Look at configuration, permissions, disk, database, machines, ports, clock "
        "and limits. The server may be running. Exit code 1 when something fails.",
    )
    doctor.add_argument(
        "--deep", action="store_true", help="also revert, reach and stop each machine"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    commands.add_parser(
        "reload",
        help="have the running server take the configuration on anew",
        description="Check the configuration, then have the server that works in this directory "
        "take it on. What runs is not disturbed. The server's log says what was done, and what "
        "needs a restart.",
    )
    _add_clean(commands)
    _add_backup(commands)


def _add_clean(commands: Commands) -> None:
    clean = commands.add_parser(
        "clean",
        help="remove old tasks, or what is large of them",
        description="Remove tasks that ended long ago, with their results, and samples that no "
        "other task\nhas; for good, and without asking. The server may be running. What it does "
        "by itself is\nset by [retention] in conf/cuckoo.conf.",
        epilog=CLEAN_EPILOG,
        **RAW,
    )
    clean.add_argument(
        "--older-than", type=age, required=True, metavar="AGE", help="since their end: 12h, 30d, 8w"
    )
    clean.add_argument(
        "--larger-than",
        type=size,
        default=0,
        metavar="SIZE",
        help="only where at least so much goes: 500M, 1G",
    )
    clean.add_argument(
        "--status",
        action="append",
        default=[],
        choices=FINAL,
        metavar="STATUS",
        help="only in this state, may be given again: " + ", ".join(FINAL),
    )
    clean.add_argument(
        "--keep-reports", action="store_true", help="keep the tasks and reports; only files go"
    )
    clean.add_argument("--dry-run", action="store_true", help="say what would go; touch nothing")
    clean.add_argument("--json", action="store_true", help="print JSON, for programs")


def age(text: str) -> int:
    """Seconds, of hours, days or weeks."""
    found = re.fullmatch(r"([0-9]{1,5})([hdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age like 12h, 30d or 8w")
    return int(found[1]) * AGES[found[2]]


def size(text: str) -> int:
    """Bytes; K, M, G and T are powers of 1024."""
    found = re.fullmatch(r"([0-9]{1,12})([KMGT]?)", text.upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 500M or 1G")
    return int(found[1]) * SIZES[found[2]]


def _add_backup(commands: Commands) -> None:
    backup = commands.add_parser(
        "backup",
        help="write the working directory to one file, also while the server runs",
        description="Write the database, conf/, signatures/, analyzer/ and storage/ to FILE, which "
        "only\nits owner may read: it holds tokens and samples. The server may be running.",
        epilog=BACKUP_EPILOG,
        **RAW,
    )
    backup.add_argument("file", metavar="FILE", help="a new file: .tar.zst or .tar.gz")
    backup.add_argument("--no-binaries", action="store_true", help="leave the samples out")
    backup.add_argument(
        "--no-analyses", action="store_true", help="leave the results of analyses out"
    )
    restore = commands.add_parser(
        "restore",
        help="fill a working directory from a backup",
        description="Check a backup as a whole, then put what it holds in place. The server must "
        "not be\nrunning. What ran when it was made waits in the queue after the next start.",
        epilog=RESTORE_EPILOG,
        **RAW,
    )
    restore.add_argument("file", metavar="FILE", help="what 'cuckoo backup' wrote")
    restore.add_argument(
        "--force", action="store_true", help="replace what is in the working directory"
    )
