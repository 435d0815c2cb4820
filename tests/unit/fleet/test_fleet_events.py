"""Events of a hypervisor, and a disk that cannot keep up with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cuckoo_api.machinery import MachineState
from cuckoo_api.store.machines import MachineStore


async def test_a_slow_disk_does_not_keep_events_from_the_lease(
    site, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, written = asyncio.Event(), MachineStore.set_status

    async def slowly(store: MachineStore, *given: Any) -> None:
        await writes.wait()
        await written(store, *given)

    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        monkeypatch.setattr(MachineStore, "set_status", slowly)
        await lease.restore_and_start()
        waiting = asyncio.create_task(lease.wait_stopped())
        await site.world.until(lambda: site.world.calls("state", "one"))
        await site.world.kill("one", "the fan stood still")
        async with asyncio.timeout(2):
            change = await waiting
        assert (change.state, change.reason) == (MachineState.ABORTED, "the fan stood still")

        writes.set()
        async with asyncio.timeout(2):
            while (await site.row()).status != "aborted":
                await fleet.wait_changed()
