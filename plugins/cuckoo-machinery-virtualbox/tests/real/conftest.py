"""Fixtures: a real VirtualBox with two machines, made once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from rig import SNAPSHOT, Make, VirtualBox, virtualbox_folder

from cuckoo_api.machinery import BackendConfig, MachineConfig
from cuckoo_machinery_virtualbox.backend import VirtualBoxBackend

pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")


@pytest.fixture(scope="session")
def virtualbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualBox]:
    """VirtualBox, with two machines; it sees the tests' temporary files as they do."""
    with VirtualBox(virtualbox_folder(), tmp_path_factory.getbasetemp()) as made:
        for name in ("one", "two"):
            made.make_machine(name)
        yield made


@pytest.fixture
def make(virtualbox: VirtualBox, tmp_path: Path) -> Make:
    """Makes backends for both machines, not opened."""
    config = BackendConfig(
        name="virtualbox",
        machines=tuple(
            MachineConfig(label=label, name=label, snapshot=SNAPSHOT) for label in ("one", "two")
        ),
        state_dir=tmp_path,
        options={"path": str(virtualbox.program), "mode": "headless"},
    )
    return lambda: VirtualBoxBackend(config)


@pytest.fixture
async def backend(make: Make) -> AsyncIterator[VirtualBoxBackend]:
    """An open backend; afterwards the machines are off."""
    made = make()
    await made.open()
    yield made
    for label in ("one", "two"):
        await made.power_off(label)
    await made.close()
