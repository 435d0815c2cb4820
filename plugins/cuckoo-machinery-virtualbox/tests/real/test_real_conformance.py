"""The suite of the contract, on the real VirtualBox."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from rig import SNAPSHOT, Make, VirtualBox

from cuckoo_api.testing.conformance import MachineryConformance, Rig
from cuckoo_machinery_virtualbox.processes import running

MARK = "/Conformance/Mark"


class TestVirtualBox(MachineryConformance):
    @pytest.fixture
    def rig(self, virtualbox: VirtualBox, make: Make) -> Rig:
        async def write(label: str, text: str) -> None:
            await asyncio.to_thread(virtualbox.run, "guestproperty", "set", label, MARK, text)

        async def read(label: str) -> str:
            said = await asyncio.to_thread(virtualbox.run, "guestproperty", "get", label, MARK)
            return said.strip().partition("Value: ")[2]

        async def kill(label: str) -> None:
            [pid] = running(await asyncio.to_thread(virtualbox.uuid, label))
            os.kill(pid, signal.SIGKILL)

        async def down() -> None:
            await asyncio.to_thread(virtualbox.signal_server, signal.SIGSTOP)

        async def up() -> None:
            await asyncio.to_thread(virtualbox.signal_server, signal.SIGCONT)

        return Rig(
            make=make,
            labels=("one", "two"),
            snapshot=SNAPSHOT,
            # each command waits here for its child to be executed: long on a crowded host
            max_lag=0.5,
            write_inside=write,
            read_inside=read,
            kill_machine=kill,
            hypervisor_down=down,
            hypervisor_up=up,
        )
