"""What is told of a VPN that has another state."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuckoo_api.analysis.vpnevents import VpnEvents
from cuckoo_api.network.vpn import Status, VpnState
from cuckoo_api.store import Store


@pytest.fixture
async def store(tmp_path: Path, empty_database: Path) -> AsyncIterator[Store]:
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    made = await Store.open(f"sqlite:///{tmp_path / 'cuckoo.db'}")
    yield made
    await made.close()


def state(status: Status, error: str | None = None) -> VpnState:
    return VpnState(
        name="vpn0", description="", interface="tun0", status=status, since="", peer="",
        rx_bytes=0, tx_bytes=0, error=error, proof="probe",
    )  # fmt: skip


async def test_each_change_is_an_event_in_its_order_and_wakes_the_queue(store: Store) -> None:
    wakes: list[None] = []
    teller = VpnEvents(store, wake=lambda: wakes.append(None))
    teller.tell(state("up"), "")
    teller.tell(state("stale", "nothing came"), "up")
    await teller.close()

    first, second = await store.events.after(0)
    assert (first.kind, second.kind) == ("vpn", "vpn")
    told = [json.loads(event.data) for event in (first, second)]
    assert [(one["status"], one["previous"]) for one in told] == [("up", None), ("stale", "up")]
    assert (told[1]["name"], told[1]["error"]) == ("vpn0", "nothing came")
    assert told[1]["time"]
    assert len(wakes) == 2


async def test_what_cannot_be_written_holds_up_nobody(store: Store) -> None:
    teller = VpnEvents(store, wake=lambda: None)
    await store.close()
    teller.tell(state("up"), "")
    await teller.close()
