"""What the commands that keep a server running take. It imports nothing: --help is quick."""

from __future__ import annotations

import argparse
from typing import Any

RAW: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}

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
    """Backup, restore."""
    _add_backup(commands)


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
