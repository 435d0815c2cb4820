"""A fake hypervisor, its backend and its guests: a whole server runs on them in one process.

async with FakeHypervisor() as world:
    world.add("win7")                        # with a FakeGuest that plays ``scripts.normal``
    plugins = load_plugins(extra=[fake_plugin(world)])
    ...
    assert world.starts("win7") == 1
    assert world.running() == []
"""

from cuckoo_api.testing import scripts
from cuckoo_api.testing.backend import ALL, FakeBackend, fake_plugin
from cuckoo_api.testing.guest import FakeGuest, GuestRun, Script
from cuckoo_api.testing.modes import Call, Dies, Failing, FakeMachine, Never, Slow, Snapshot
from cuckoo_api.testing.world import FakeHypervisor

__all__ = [
    "ALL",
    "Call",
    "Dies",
    "Failing",
    "FakeBackend",
    "FakeGuest",
    "FakeHypervisor",
    "FakeMachine",
    "GuestRun",
    "Never",
    "Script",
    "Slow",
    "Snapshot",
    "fake_plugin",
    "scripts",
]
