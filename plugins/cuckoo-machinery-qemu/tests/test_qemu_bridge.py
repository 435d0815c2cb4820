"""The bridge as a restored guest knows it: it is to be found where the snapshot left it."""

from __future__ import annotations

import json

import pytest
from qemukit import Lab, run, started

from conftest import Labs, Make


@pytest.fixture
def lab(labs: Labs) -> Lab:
    """The machines on a bridge; there is none in the other kind of network."""
    return labs("bridge")


async def test_the_bridge_has_one_address_whatever_is_plugged_into_it(make: Make) -> None:
    seen = []
    for _ in range(2):
        backend = await make()

        def look(interface: str = backend.config.options["interface"]) -> None:
            [link] = json.loads(run("ip", "-json", "link", "show", interface))
            seen.append(link["address"])

        look()
        async with started(backend):
            look()
            async with started(backend, "two"):
                look()
        await backend.close()
    assert len(set(seen)) == 1, seen
