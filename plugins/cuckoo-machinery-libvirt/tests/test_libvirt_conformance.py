"""The suite of the contract, on a real libvirtd with real QEMU guests."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from libvirtkit import ADDRESSES, SNAPSHOT, Lab, agent_of, inside

from cuckoo_api.testing.conformance import MachineryConformance, Rig
from cuckoo_machinery_libvirt.backend import LibvirtBackend


class TestLibvirt(MachineryConformance):
    @pytest.fixture
    def rig(self, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Rig:
        state_dir = tmp_path_factory.mktemp("state")
        libvirtd = lab.libvirtd

        async def write(label: str, text: str) -> None:
            async with agent_of(label) as agent:
                await inside(agent, f"echo '{text}' | tee /dev/shm/mark > /root/mark; sync")

        async def read(label: str) -> str:
            async with agent_of(label) as agent:
                memory, disk = [
                    await inside(agent, f"if [ -e {path} ]; then cat {path}; fi")
                    for path in ("/dev/shm/mark", "/root/mark")
                ]
            assert memory == disk
            return disk.strip()

        async def kill(label: str) -> None:
            os.kill(libvirtd.qemu(label), signal.SIGKILL)

        async def down() -> None:
            await asyncio.to_thread(libvirtd.kill)

        async def up() -> None:
            await asyncio.to_thread(libvirtd.start)

        return Rig(
            make=lambda: LibvirtBackend(lab.config(state_dir)),
            labels=tuple(ADDRESSES),
            snapshot=SNAPSHOT,
            write_inside=write,
            read_inside=read,
            kill_machine=kill,
            hypervisor_down=down,
            hypervisor_up=up,
        )
