"""Drives the hypervisor's backend alone: for each line of standard input the seconds of a start.

python -m tests.bench.alone CWD
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from cuckoo_api.cli.common import settings_of
from cuckoo_api.fleet import load_plugins
from cuckoo_api.fleet.setup import backend_configs
from cuckoo_api.guest import GuestClient
from cuckoo_api.server.logs import configure_logs


async def main(cwd: Path) -> None:
    plugins = load_plugins()
    [config] = backend_configs(settings_of(cwd), plugins)
    machine = config.machines[0]
    backend = plugins[config.name].backend(config)
    await backend.open()
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            begin = time.perf_counter()
            await backend.restore_and_start(machine.label, machine.snapshot)
            async with GuestClient(backend.address(machine.label).agent) as client:
                await client.wait_ready(60)
            print(time.perf_counter() - begin, flush=True)
            await backend.power_off(machine.label)
    finally:
        await backend.close()


if __name__ == "__main__":
    configure_logs()
    asyncio.run(main(Path(sys.argv[1])))
