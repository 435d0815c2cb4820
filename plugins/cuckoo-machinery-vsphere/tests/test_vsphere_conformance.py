"""The suite of the contract, on VMware's simulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from vspherekit import ONE, SNAPSHOT, TWO, Site, Wire, config

from cuckoo_api.testing.conformance import MachineryConformance, Rig
from cuckoo_machinery_vsphere.backend import VsphereBackend


class TestVsphere(MachineryConformance):
    @pytest.fixture
    async def rig(self, site: Site, wire: Wire, tmp_path: Path) -> Rig:
        ca_file = str(site.certificate.authority)

        async def kill(label: str) -> None:
            site.admin.done(site.admin.machine(label).PowerOff())

        no_guest = "the simulator's machines run nothing"
        return Rig(
            make=lambda: VsphereBackend(config(tmp_path, wire.port, ca_file=ca_file)),
            labels=(ONE, TWO),
            snapshot=SNAPSHOT,
            timeout=20,
            kill_machine=kill,
            hypervisor_down=wire.cut,
            hypervisor_up=wire.mend,
            without={"write_inside": no_guest, "read_inside": no_guest},
        )
