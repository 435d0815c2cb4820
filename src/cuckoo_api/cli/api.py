"""``cuckoo api``: the server in the foreground."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from cuckoo_api.cli.common import settings_of
from cuckoo_api.server.app import create_app
from cuckoo_api.server.lock import ask_to_reload
from cuckoo_api.server.run import serve
from cuckoo_api.server.systemd import Manager, passed_sockets


def run_server(arguments: argparse.Namespace, cwd: Path) -> int:
    """Serve until stopped. The URL that is listened on goes to standard output."""
    sockets, manager = passed_sockets(), Manager()
    settings = settings_of(cwd)
    app = create_app(settings, engine=not arguments.no_engine, debug=arguments.debug)
    asyncio.run(
        serve(
            app,
            host=arguments.host or settings.api.host,
            port=settings.api.port if arguments.port is None else arguments.port,
            unix_socket=Path(arguments.socket) if arguments.socket else None,
            sockets=sockets,
            manager=manager,
            on_ready=lambda url: print(f"cuckoo-api listens on {url}", flush=True),
        )
    )
    return 0


def reload_server(cwd: Path) -> int:
    """Have the server reload, unless it would refuse to."""
    settings_of(cwd)
    pid = ask_to_reload(cwd)
    print(f"The server (pid {pid}) takes the configuration on; its log says what was done.")
    return 0
