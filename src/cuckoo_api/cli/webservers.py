"""``cuckoo api --nginx`` and ``--uwsgi``: configurations for this installation."""

from __future__ import annotations

import argparse
from pathlib import Path

from cuckoo_api.cli.common import complaints, settings_of, text
from cuckoo_api.server.deploy import nginx_conf, uwsgi_conf, uwsgi_warning


def print_configuration(arguments: argparse.Namespace, cwd: Path) -> int:
    """Print the one that is asked for; nothing is written, and nothing served."""
    settings = settings_of(cwd)
    if arguments.uwsgi:
        if warning := uwsgi_warning():
            complaints.print(text("warning:", "yellow"), text(warning), soft_wrap=True)
        print(uwsgi_conf(settings), end="")
        return 0
    host = arguments.host or settings.api.host
    port = settings.api.port if arguments.port is None else arguments.port
    unix_socket = Path(arguments.socket) if arguments.socket else None
    print(nginx_conf(settings, host, port, unix_socket), end="")
    return 0
