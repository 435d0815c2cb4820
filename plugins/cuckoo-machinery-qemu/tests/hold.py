"""A server in little: opens a backend, runs one machine until its input ends.

Usage: hold.py STATE_DIR NETWORK IMAGE SNAPSHOTS
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from qemukit import Lab, inside, started

from cuckoo_machinery_qemu.backend import QemuBackend


async def main(state_dir: str, *lab: str) -> None:
    backend = QemuBackend(Lab.from_words(*lab).config(Path(state_dir)))
    try:
        await backend.open()
        async with started(backend) as agent:
            print("the guest says", await inside(agent, "uname -s"), end="", flush=True)
            await asyncio.to_thread(sys.stdin.read)
    finally:
        await backend.close()
    print("closed", flush=True)


asyncio.run(main(*sys.argv[1:]))
