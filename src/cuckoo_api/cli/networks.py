"""What the commands about guests' networks take. It imports nothing: --help is quick."""

from __future__ import annotations

import argparse
from typing import Any

RAW: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
ROOTER_EPILOG = """\
It needs CAP_NET_ADMIN, and nothing else: root, or a systemd unit with that one capability.
SIGHUP has it read conf/routing.conf again.

example:
  cuckoo --cwd /var/lib/cuckoo rooter --group cuckoo
"""

Commands = Any  # argparse's own type of it is private


def add_network_commands(commands: Commands) -> None:
    """The rooter."""
    rooter = commands.add_parser(
        "rooter",
        help="run the privileged helper that routes guests",
        description="Serve the unix socket through which the server has guests routed. Every "
        "network of\n[rooter] interfaces in conf/routing.conf is shut when it starts, and stays so "
        "when it ends.",
        epilog=ROOTER_EPILOG,
        **RAW,
    )
    rooter.add_argument(
        "--socket", metavar="PATH", help="listen here (default: [cuckoo] rooter in cuckoo.conf)"
    )
    rooter.add_argument("--user", help="who may ask it, besides root (default: [rooter] user)")
    rooter.add_argument("--group", help="whose members may ask it (default: [rooter] group)")
    rooter.add_argument("--debug", action="store_true", help="more log")
