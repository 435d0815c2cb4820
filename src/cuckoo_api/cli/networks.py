"""What the commands about guests' networks take. It imports nothing: --help is quick."""

from __future__ import annotations

import argparse
from typing import Any

from cuckoo_api.cli.arguments import add_client_arguments

RAW: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
VPN_EPILOG = """\
examples:
  cuckoo vpn                the state of each, as the running server sees it
  cuckoo vpn check vpn0     look at one step by step, with a server or without
"""
ROOTER_EPILOG = """\
It needs CAP_NET_ADMIN, and nothing else: root, or a systemd unit with that one capability.
SIGHUP has it read routing.conf again.

example:
  cuckoo rooter --conf /etc/cuckoo/routing.conf --group cuckoo
"""

Commands = Any  # argparse's own type of it is private


def add_network_commands(commands: Commands) -> None:
    """The rooter, and VPNs."""
    vpn = commands.add_parser(
        "vpn",
        help="the state of each VPN; prove one",
        description="Show the VPNs of conf/routing.conf as the running server sees them.",
        epilog=VPN_EPILOG,
        **RAW,
    )
    add_client_arguments(vpn)
    actions = vpn.add_subparsers(dest="action", metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="prove one from end to end",
        description="Look at the rooter, the tunnel, and whether something answers through it. "
        "Exit code 1\nwhen a step does not hold.",
        **RAW,
    )
    check.add_argument("name", help="the VPN, as tasks call it")
    check.add_argument("--json", action="store_true", help="print JSON, for programs")
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
        "--conf",
        metavar="FILE",
        help="read this file, and nothing in the working directory (default: conf/routing.conf)",
    )
    rooter.add_argument(
        "--socket", metavar="PATH", help="listen here (default: [cuckoo] rooter in cuckoo.conf)"
    )
    rooter.add_argument("--user", help="who may ask it, besides root (default: [rooter] user)")
    rooter.add_argument("--group", help="whose members may ask it (default: [rooter] group)")
    rooter.add_argument("--debug", action="store_true", help="more log")
