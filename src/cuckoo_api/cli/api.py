"""``cuckoo api`` and ``cuckoo engine``: the server in the foreground, whole or in two processes."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from cuckoo_api.cli.common import settings_of
from cuckoo_api.server.app import create_app
from cuckoo_api.server.lock import ask_to_reload
from cuckoo_api.server.run import serve
from cuckoo_api.server.systemd import Manager, passed_sockets
from cuckoo_api.server.units import units, write
from cuckoo_api.settings import Settings

ENGINE_SOCKET = "engine.sock"
"""Where an engine answers, in the working directory, unless it is told another place."""


def run_server(arguments: argparse.Namespace, cwd: Path) -> int:
    """Serve until stopped. The URL that is listened on goes to standard output."""
    sockets, manager = passed_sockets(), Manager()
    settings = settings_of(cwd)
    is_engine = arguments.command == "engine"
    path = Path(arguments.socket) if arguments.socket else None
    if is_engine and path is None and arguments.host is None and arguments.port is None:
        path = cwd / ENGINE_SOCKET
    port = arguments.port
    if port is None:
        port = 0 if is_engine else settings.api.port  # [api] port is the API's own process's
    app = create_app(settings, engine=is_engine or not arguments.no_engine, debug=arguments.debug)
    asyncio.run(
        serve(
            app,
            host=arguments.host or ("127.0.0.1" if is_engine else settings.api.host),
            port=port,
            unix_socket=path,
            sockets=sockets,
            manager=manager,
            drain=arguments.drain,
            on_ready=lambda url: print(f"cuckoo-{arguments.command} listens on {url}", flush=True),
        )
    )
    return 0


def show_units(arguments: argparse.Namespace, cwd: Path) -> int:
    """Print systemd's units, or write them; the working directory may be one that is to come."""
    is_there = (cwd / "conf" / "cuckoo.conf").exists()
    texts = units(settings_of(cwd) if is_there else Settings(cwd=cwd))
    if arguments.systemd:
        for path in write(texts, Path(arguments.systemd)):
            print(f"wrote {path}")
        return 0
    print("\n".join(f"# /{name}\n{text}" for name, text in texts.items()), end="")
    return 0


def reload_server(cwd: Path) -> int:
    """Have the server reload, unless it would refuse to."""
    # not even what its unit starts for a reload can read the service's credentials
    settings_of(cwd, credentials=False)
    pid = ask_to_reload(cwd)
    print(f"The server (pid {pid}) takes the configuration on; its log says what was done.")
    return 0
