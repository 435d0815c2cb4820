"""What others do to the machines is told by the server, and not asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from vspherekit import ONE, SNAPSHOT, TWO, Make, Site

from cuckoo_api.machinery import BackendUnavailable, MachineState, StateChange
from cuckoo_api.testing.rig import watching
from cuckoo_machinery_vsphere.backend import VsphereBackend

RUNNING, OFF = MachineState.RUNNING, MachineState.POWEROFF
GONE = MachineState.UNREACHABLE
Events = asyncio.Queue[StateChange]
Next = Callable[..., Awaitable[StateChange]]


async def told(events: Events, *wanted: tuple[str, MachineState]) -> StateChange:
    """The next changes, which have to be these; the last of them."""
    for label, state in wanted:
        change = await asyncio.wait_for(events.get(), 5)
        assert (change.label, change.state) == (label, state)
    return change


@pytest.fixture
async def events(backend: VsphereBackend) -> AsyncIterator[Events]:
    async with watching(backend) as events:
        await told(events, (ONE, OFF), (TWO, OFF))
        yield events


async def test_what_an_administrator_does_is_told_at_once_and_costs_no_call(
    events: Events, site: Site
) -> None:
    machine = site.admin.machine(TWO)
    site.simulator.calls()
    site.admin.done(machine.PowerOn())
    change = await asyncio.wait_for(events.get(), 1)
    assert (change.label, change.state) == (TWO, RUNNING)
    site.admin.done(machine.Suspend())
    await told(events, (TWO, MachineState.PAUSED))
    site.admin.done(machine.PowerOff())
    await told(events, (TWO, OFF))
    assert "RetrievePropertiesEx" not in site.simulator.calls()


async def test_a_host_that_goes_away_and_comes_back_is_told(events: Events, site: Site) -> None:
    site.simulator.order("machine", ONE, fault="disconnected")
    assert "it is disconnected" in (await told(events, (ONE, GONE))).reason
    site.simulator.order("machine", ONE, fault="connected")
    await told(events, (ONE, OFF))


async def test_a_machine_that_is_removed_and_one_that_takes_its_name_are_told(
    events: Events, site: Site
) -> None:
    first, second = site.admin.machine(ONE), site.admin.machine(TWO)
    site.admin.done(second.PowerOn())
    await told(events, (TWO, RUNNING))
    site.admin.done(first.Destroy_Task())
    assert f"no machine '{ONE}'" in (await told(events, (ONE, GONE))).reason
    site.admin.done(second.Rename_Task(ONE))
    await told(events, (ONE, RUNNING), (TWO, GONE))


async def test_a_machine_that_is_made_later_is_told(make: Make, site: Site) -> None:
    backend = await make(site, ONE, "later")
    async with watching(backend) as events:
        await told(events, (ONE, OFF), ("later", GONE))
        site.admin.clone(ONE, "later")
        await told(events, ("later", OFF))


async def test_the_stream_outlives_the_session_and_begins_with_all_states(
    make: Make, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuckoo_machinery_vsphere.updates.WAIT", 1)
    backend = await make(site)
    async with watching(backend) as events:
        await told(events, (ONE, OFF), (TWO, OFF))
        for _ in range(2):
            site.admin.end_session(backend._session.login().cookie.partition("=")[2])
            site.simulator.calls()
            await told(events, (ONE, OFF), (TWO, OFF))
            assert site.simulator.calls()["Login"] == 1
        site.admin.done(site.admin.machine(ONE).PowerOn())
        await told(events, (ONE, RUNNING))


async def test_a_server_that_ends_ends_the_stream_with_the_reason(
    backend: VsphereBackend, site: Site
) -> None:
    stream = backend.watch()
    assert [(await anext(stream)).state for _ in range(2)] == [OFF, OFF]
    site.admin.close()
    site.simulator.close()
    with pytest.raises(BackendUnavailable, match=r"127.0.0.1:\d+"):
        await asyncio.wait_for(anext(stream), 5)


async def test_a_stream_ends_soon_when_it_is_not_wanted_any_more(
    backend: VsphereBackend, site: Site
) -> None:
    async with asyncio.timeout(3):
        async with watching(backend) as events:
            await told(events, (ONE, OFF), (TWO, OFF))
    stream = backend.watch()
    assert (await anext(stream)).label == ONE
    async with asyncio.timeout(3):
        await backend.close()
    assert [change.label async for change in stream] == [TWO]


async def test_a_start_of_our_own_is_told_too(backend: VsphereBackend, events: Events) -> None:
    await backend.restore_and_start(ONE, SNAPSHOT)
    await told(events, (ONE, RUNNING))
