"""The suite of the contract, on a stand-in. tests/real has it on the real VirtualBox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from standin import StandIn
from vboxkit import SNAPSHOT, Program, config_for

from cuckoo_api.testing.conformance import MachineryConformance, Rig
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend


class TestOnAStandIn(MachineryConformance):
    @pytest.fixture
    def rig(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
        folder = tmp_path_factory.mktemp("standin")
        standin = StandIn(folder, "one", "two")
        machines = standin.machines

        async def write(label: str, text: str) -> None:
            machines[label].mark = text

        async def read(label: str) -> str:
            return machines[label].mark

        async def kill(label: str) -> None:
            process = machines[label].process
            assert process is not None
            process.kill()

        async def down() -> None:
            standin.down = True

        async def up() -> None:
            standin.down = False

        with closing(standin), Program(folder, standin.answer) as program:
            config = config_for(program.path, folder, "one", "two")
            yield Rig(
                make=lambda: VirtualBoxBackend(config),
                labels=("one", "two"),
                snapshot=SNAPSHOT,
                timeout=10,
                # each command waits here for its child to be executed: long on a crowded host
                max_lag=0.5,
                write_inside=write,
                read_inside=read,
                kill_machine=kill,
                hypervisor_down=down,
                hypervisor_up=up,
            )
