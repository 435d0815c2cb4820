"""``cuckoo rooter``: the privileged helper, until a signal stops it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import signal
from pathlib import Path

import structlog

from cuckoo_api.model.errors import ConfigError, CuckooError
from cuckoo_api.network.rooter.server import Rooter
from cuckoo_api.server.systemd import Manager
from cuckoo_api.settings import Network, load_network

log = structlog.get_logger()


def rooter(arguments: argparse.Namespace, cwd: Path) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP reads routing.conf again."""
    asyncio.run(_serve(arguments, cwd))
    return 0


async def _serve(arguments: argparse.Namespace, cwd: Path) -> None:
    manager = Manager()
    network = _network(arguments, cwd)
    if not network.rooter.interfaces:
        fault = (
            f"{arguments.conf or 'conf/routing.conf'} [rooter] interfaces: is empty, and so is "
            "bridges; allowed: the guests' networks as this host sees them, such as virbr0"
        )
        raise ConfigError([fault])
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    served = Rooter(network)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    reloads: set[asyncio.Task[None]] = set()

    def reread() -> None:
        task = asyncio.create_task(_reload(served, arguments, cwd, manager))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reread)
    path = Path(arguments.socket) if arguments.socket else network.socket
    await served.open(path)
    try:
        log.info("rooter.ready", socket=str(path), interfaces=network.rooter.interfaces)
        print(f"The rooter listens on {path}", flush=True)
        manager.tell(READY=1, STATUS=f"listens on {path}")
        await stopped.wait()
        manager.tell(STOPPING=1)
    finally:
        await served.close()
        path.unlink(missing_ok=True)
    log.info("rooter.stopped")


async def _reload(
    served: Rooter, arguments: argparse.Namespace, cwd: Path, manager: Manager
) -> None:
    """Take what is in the file now; where it is wrong the old stays."""
    with manager.reloading():
        try:
            await served.reload(_network(arguments, cwd))
        except ConfigError as exc:
            for fault in exc.faults:
                log.warning("rooter.not_reloaded", fault=fault)
        except CuckooError as exc:
            log.warning("rooter.not_reloaded", fault=exc.log)


def _network(arguments: argparse.Namespace, cwd: Path) -> Network:
    network = load_network(cwd, Path(arguments.conf) if arguments.conf else None)
    allowed = dataclasses.replace(
        network.rooter,
        user=arguments.user or network.rooter.user,
        group=arguments.group or network.rooter.group,
    )
    return dataclasses.replace(network, rooter=allowed)
