"""Which process runs what, when there are several."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("cuckoo-machinery-libvirt/", "cuckoo-machinery-qemu/")
"""Their tests share real machines, and a network, that are made once."""


class ByHypervisor(LoadScopeScheduling):
    """These plugins' tests go to one process each; all others to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return next((plugin for plugin in TOGETHER if plugin in nodeid), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByHypervisor:
    return ByHypervisor(config, log)
