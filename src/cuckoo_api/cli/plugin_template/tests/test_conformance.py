"""The conformance suite on a real hypervisor. Its machines are reverted and powered off."""

from __future__ import annotations

from pathlib import Path

import pytest
from cuckoo_machinery_nameless.backend import NamelessBackend

from cuckoo_api.machinery import BackendConfig, MachineConfig
from cuckoo_api.testing.conformance import MachineryConformance, Rig

LABELS: tuple[str, ...] = ()
"""Machines for the tests alone; two, to test two at once."""
SNAPSHOT = "clean"
"""One that each of them has."""
OPTIONS = {"url": ""}
"""The plugin's own keys."""


class TestNameless(MachineryConformance):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Rig:
        if not LABELS:
            raise NotImplementedError("name machines of your hypervisor in LABELS")
        machines = tuple(MachineConfig(label=n, name=n, snapshot=SNAPSHOT) for n in LABELS)
        config = BackendConfig("nameless", machines, tmp_path, OPTIONS)
        return Rig(
            make=lambda: NamelessBackend(config),
            labels=LABELS,
            snapshot=SNAPSHOT,
            # Give write_inside, read_inside, kill_machine, hypervisor_down and hypervisor_up, or
            # say here why it cannot be done: a test that needs one fails until then.
            without={},
        )
