"""Other settings while machines work: what runs is not disturbed, what is new comes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cuckoo_api.fleet import Fleet, exchange
from cuckoo_api.machinery import MachineryError, MachineState
from cuckoo_api.model.errors import ConfigError, Unavailable
from cuckoo_api.model.task import NewTask
from cuckoo_api.settings import CuckooSection, Settings
from cuckoo_api.testing.fake import Failing, FakeHypervisor

pytestmark = pytest.mark.slow


def free(fleet: Fleet) -> list[str]:
    return [machine.name for machine in fleet.free()]


def with_machines(settings: Settings, *labels: str, **changes: object) -> Settings:
    """The settings with these machines of the fake, each with the changes."""
    fake = settings.machinery["fake"]
    [some, *_] = fake.machines
    machines = tuple(replace(some, label=x, name=f"{x}-name", **changes) for x in labels)  # type: ignore[arg-type]
    return replace(
        settings, machinery={**settings.machinery, "fake": replace(fake, machines=machines)}
    )


def opened(world: FakeHypervisor) -> int:
    return len(world.calls("open"))


async def test_what_did_not_change_is_left_alone(site) -> None:
    async with site.fleet() as fleet:
        await fleet.reconfigure(site.settings())
        await fleet.settled()
        assert free(fleet) == ["one-name", "two-name"]
    assert opened(site.world) == 1


async def test_a_machine_is_added_and_one_let_go_of_after_its_task(site, until) -> None:
    site.world.add("three", with_guest=False)
    both = with_machines(site.settings(), "one", "two")
    async with site.fleet(both) as fleet:
        lease = await site.lease(fleet, "two-name")
        await lease.restore_and_start()
        await fleet.reconfigure(with_machines(both, "one", "three"))
        assert free(fleet) == [], "its hypervisor gets no task until it is opened anew"
        assert site.world.running() == ["two"], "what runs, runs on"
        assert await fleet.lease(lease.machine) is None
        await fleet.release(lease)
        await fleet.settled()

        assert free(fleet) == ["one-name", "three-name"]
        assert [m.name for m in await site.store.machines.list()] == ["one-name", "three-name"]
        await site.lease(fleet, "three-name")
    assert opened(site.world) == 2


async def test_a_change_that_is_taken_back_meanwhile_ends_nothing(site) -> None:
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(settings) as fleet:
        lease = await site.lease(fleet)
        await fleet.reconfigure(with_machines(settings, "one"))
        assert free(fleet) == []
        await fleet.reconfigure(settings)
        await fleet.settled()
        assert free(fleet) == ["two-name"]
        await fleet.release(lease)
    assert opened(site.world) == 1


async def test_tags_and_limits_need_no_pause(site) -> None:
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(settings) as fleet:
        lease = await site.lease(fleet)
        new = with_machines(settings, "one", "two", tags=("office",), platform="windows")
        new = replace(new, cuckoo=replace(new.cuckoo, max_machines_count=2, max_vmstartup_count=1))
        await fleet.reconfigure(new)
        await fleet.settled()
        assert free(fleet) == ["two-name"]
        await fleet.release(lease)
        [task] = await site.store.tasks.submit(
            [NewTask(category="url", target="x", tags=["office"], platform="windows")]
        )
        [one, _] = fleet.free()
        taken = await fleet.lease(one)
        assert taken is not None
        assert taken.task.id == task
        row = await site.row()
        assert (row.tags, row.platform, row.locked) == (["office"], "windows", True)
    assert opened(site.world) == 1


async def test_the_other_hypervisors_are_not_disturbed(site) -> None:
    async with FakeHypervisor() as other:
        other.add("three", with_guest=False)
        site.worlds["other"] = other
        settings = site.settings()
        async with site.fleet(settings) as fleet:
            held = await site.lease(fleet)
            busy = await site.lease(fleet, "three-name")
            await busy.restore_and_start()
            await fleet.quarantine("three-name", "it is suspected")
            await fleet.reconfigure(with_machines(settings, "two"))
            assert other.running() == ["three"]
            await fleet.release(held)
            await fleet.settled()
            assert free(fleet) == ["two-name"]
            assert (await site.row("three-name")).quarantine == "it is suspected"
            assert (await site.row("three-name")).locked
            await fleet.release(busy)
        assert opened(other) == 1


async def test_a_machinery_comes_and_goes(site) -> None:
    async with FakeHypervisor() as other:
        other.add("three", with_guest=False)
        site.worlds["other"] = other
        both = site.settings()
        one = replace(both, cuckoo=replace(both.cuckoo, machinery=("fake",)))
        async with site.fleet(one) as fleet:
            assert free(fleet) == ["one-name", "two-name"]
            await fleet.reconfigure(both)
            await fleet.settled()
            assert free(fleet) == ["one-name", "two-name", "three-name"]
            await fleet.reconfigure(one)
            await fleet.settled()
            assert free(fleet) == ["one-name", "two-name"]
            assert other.open_backends == 0


async def test_a_machine_that_may_run_because_of_us_is_off_before_it_is_forgotten(
    site, until
) -> None:
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(settings) as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        site.world.behave("power_off", Failing(MachineryError("busy")), label="one")
        await fleet.release(lease)
        assert (await site.row()).quarantine
        site.world.behave("power_off", None, label="one")
        await fleet.reconfigure(with_machines(settings, "two"))
        await fleet.settled()
        assert site.world.running() == []
        assert free(fleet) == ["two-name"]


async def test_a_machine_that_may_run_because_of_us_is_off_before_it_is_used_again(
    site, until
) -> None:
    settings = with_machines(site.settings(), "one", "two")
    site.deadlines = replace(site.deadlines, first_retry=60, last_retry=60)
    async with site.fleet(settings) as fleet:
        await fleet.recover()
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        site.world.behave("power_off", Failing(MachineryError("busy")), label="one")
        await fleet.release(lease)
        site.world.behave("power_off", None, label="one")
        await fleet.reconfigure(with_machines(settings, "one", "two", interface="br7"))
        await fleet.settled()
        await until(fleet, lambda: free(fleet) == ["one-name", "two-name"])
        assert site.world.running() == []


async def test_nothing_is_given_out_before_the_way_for_its_results_is_open(site) -> None:
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(with_machines(settings, "one")) as fleet:
        seen: list[tuple[list[str], list[tuple[str, int]]]] = []

        async def listen() -> None:
            seen.append((free(fleet), fleet.result_addresses()))

        fleet.on_opened = listen
        new = with_machines(settings, "one", "two", resultserver_ip="192.0.2.9")
        await fleet.reconfigure(new)
        await fleet.settled()
        assert [names for names, _ in seen] == [[]]
        assert free(fleet) == ["one-name", "two-name"]


async def test_what_cannot_work_changes_nothing(site) -> None:
    settings = site.settings()
    async with site.fleet(settings) as fleet:
        twice = with_machines(settings, "one", "one")
        with pytest.raises(ConfigError, match="more than one machine"):
            await fleet.reconfigure(twice)
        nobody = replace(settings, cuckoo=CuckooSection(machinery=("fake", "nonesuch")))
        with pytest.raises(ConfigError, match="nonesuch"):
            await fleet.reconfigure(nobody)
        await fleet.settled()
        assert free(fleet) == ["one-name", "two-name"]
    assert opened(site.world) == 1


async def test_a_store_that_fails_for_a_moment_costs_a_moment(
    site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "FIRST_PAUSE", 0.01)
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(settings) as fleet:
        sync, failures = type(site.store.machines).sync, [Unavailable("The database is busy")]

        async def busy(*args: object, **values: object) -> object:
            if failures:
                raise failures.pop()
            return await sync(*args, **values)

        monkeypatch.setattr(type(site.store.machines), "sync", busy)
        await fleet.reconfigure(with_machines(settings, "two"))
        await fleet.settled()
        assert free(fleet) == ["two-name"]


async def test_a_backend_that_cannot_be_opened_anew_comes_when_it_can(site, until) -> None:
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(settings) as fleet:
        site.world.behave("open", Failing(MachineryError("not now")))
        await fleet.reconfigure(with_machines(settings, "two"))
        await fleet.settled()
        assert free(fleet) == []
        assert "not now" in str((await site.row("two-name")).quarantine)
        site.world.behave("open", None)
        await until(fleet, lambda: free(fleet) == ["two-name"])
        assert await fleet.machines()


async def test_a_stop_does_not_wait_for_an_exchange(site) -> None:
    settings = with_machines(site.settings(), "one", "two")
    async with site.fleet(settings) as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        await fleet.reconfigure(with_machines(settings, "two"))
        async with asyncio.timeout(5):
            await fleet.close()
        assert site.world.running() == []
        assert await site.store.machines.get("one-name") is not None
        assert site.world.machines["one"].state == MachineState.POWEROFF
