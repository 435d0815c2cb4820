"""The suite of the contract, on the real QEMU and on both kinds of network."""

from __future__ import annotations

import os
import signal

import pytest
from qemukit import SNAPSHOT, Lab, agent_of, inside, pid_of

from cuckoo_api.testing.conformance import MachineryConformance, Rig
from cuckoo_machinery_qemu.backend import QemuBackend


class TestQemu(MachineryConformance):
    @pytest.fixture
    def rig(self, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Rig:
        state_dir = lab.state_dir(tmp_path_factory.mktemp("state"))
        made: list[QemuBackend] = []

        def make() -> QemuBackend:
            made.append(QemuBackend(lab.config(state_dir)))
            return made[-1]

        async def write(label: str, text: str) -> None:
            async with agent_of(made[-1], label) as agent:
                await inside(agent, f"echo '{text}' | tee /dev/shm/mark > /root/mark; sync")

        async def read(label: str) -> str:
            async with agent_of(made[-1], label) as agent:
                memory, disk = [
                    await inside(agent, f"if [ -e {path} ]; then cat {path}; fi")
                    for path in ("/dev/shm/mark", "/root/mark")
                ]
            assert memory == disk
            return disk.strip()

        async def kill(label: str) -> None:
            os.kill(pid_of(made[-1], label), signal.SIGKILL)

        no_daemon = "each machine is a process of its own: there is nothing else to stop"
        return Rig(
            make=make,
            labels=("one", "two"),
            snapshot=SNAPSHOT,
            write_inside=write,
            read_inside=read,
            kill_machine=kill,
            without={"hypervisor_down": no_daemon, "hypervisor_up": no_daemon},
        )
