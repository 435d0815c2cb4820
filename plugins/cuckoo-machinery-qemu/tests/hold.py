"""A server in little: opens a backend, runs one machine until its input ends.

Usage: hold.py STATE_DIR NETWORK IMAGE SNAPSHOTS [ROOTER]

With the socket of a rooter, the guest is on the bridge that it makes.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

from qemukit import BRIDGE, GATEWAY, Lab, inside, started

from cuckoo_api.network.rooter.taps import RooterTaps
from cuckoo_machinery_qemu.backend import QemuBackend


def bridges() -> dict[str, IPv4Interface]:
    """Those of the rooter."""
    return {BRIDGE: IPv4Interface(f"{GATEWAY}/24")}


async def main(state_dir: str, network: str, image: str, snapshots: str, *rooter: str) -> None:
    config = Lab.from_words(network, image, snapshots).config(Path(state_dir))
    if rooter:
        config = replace(config, taps=RooterTaps(Path(rooter[0]), bridges()))
    backend = QemuBackend(config)
    try:
        await backend.open()
        async with started(backend) as agent:
            print("the guest says", await inside(agent, "uname -s"), end="", flush=True)
            await asyncio.to_thread(sys.stdin.read)
    finally:
        await backend.close()
    print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
