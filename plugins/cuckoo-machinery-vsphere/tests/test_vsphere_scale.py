"""A thousand machines cost what a few cost, in calls; and the event loop does not feel them."""

from __future__ import annotations

import asyncio
import math

import pytest
from vspherekit import Make, Simulate

from cuckoo_api.machinery import MachineState
from cuckoo_api.testing.rig import event_loop_watched, watching
from cuckoo_machinery_vsphere.inventory import PAGE

MACHINES = 1000
PAGES = math.ceil((MACHINES + 10) / PAGE)
"""Answers for all machines, and the few folders around them."""


async def test_a_thousand_machines(
    make: Make, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it is the calls that are counted: a busy machine, which runs the server too, may take longer
    monkeypatch.setattr("cuckoo_machinery_vsphere.backend.PROMPT", 30)
    site = simulate("-machines", str(MACHINES))
    labels = [f"DC0_H0_VM{number}" for number in range(MACHINES)]
    site.simulator.calls()

    def calls() -> int:
        return sum(site.simulator.calls().values())

    async with event_loop_watched(0.25):
        backend = await make(site, *labels)
        assert calls() == 2 + PAGES  # what the server is, the login, the machines
        assert sorted(await backend.labels()) == sorted(labels)
        assert calls() == PAGES
        states = await asyncio.gather(*(backend.state(label) for label in labels))
        assert set(states) == {MachineState.POWEROFF}
        assert calls() <= PAGES
        facts = await asyncio.gather(*(backend.inspect(label) for label in labels))
        assert len({fact.uuid for fact in facts}) == MACHINES
        assert calls() <= PAGES
        async with watching(backend) as events:
            for label in labels:
                assert (await asyncio.wait_for(events.get(), 20)).label == label
            assert calls() <= 3 + 2 + PAGES  # a stream, its first answer, who is who
