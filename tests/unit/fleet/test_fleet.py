"""What becomes of machines: leased, released, in quarantine, unreachable, and back."""

from __future__ import annotations

import asyncio
import stat
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from cuckoo_api.fleet import Fleet, Lease, load_plugins
from cuckoo_api.fleet.setup import backend_configs
from cuckoo_api.machinery import (
    BackendUnavailable,
    BadConfig,
    Capability,
    MachineryError,
    MachineState,
    OperationTimedOut,
    Secret,
    Service,
    SnapshotNotFound,
    WrongState,
)
from cuckoo_api.model.errors import ConfigError, Unavailable
from cuckoo_api.model.task import NewTask, Status
from cuckoo_api.network.rooter.taps import rooter_taps
from cuckoo_api.settings import CuckooSection, RoutingSection
from cuckoo_api.settings.routing import RooterSection
from cuckoo_api.testing.fake import ALL, Failing, FakeHypervisor, Never, Slow, fake_plugin

RUNNING, POWEROFF = MachineState.RUNNING, MachineState.POWEROFF
UNWATCHED = ALL & ~Capability.WATCH


def names(fleet: Fleet) -> list[str]:
    return [machine.name for machine in fleet.free()]


# -- the ordinary way -----------------------------------------------------------------------------


async def test_a_machine_is_leased_run_and_released(site) -> None:
    async with site.fleet() as fleet:
        assert names(fleet) == ["one-name", "two-name"]
        lease = await site.lease(fleet)
        assert names(fleet) == ["two-name"]
        assert lease.machine.task_id == lease.task.id
        assert (await site.row()).locked
        await lease.restore_and_start()
        assert site.world.running() == ["one"]
        await fleet.release(lease)
        assert site.world.running() == []
        assert names(fleet) == ["one-name", "two-name"]
        assert not (await site.row()).locked
        await fleet.release(lease)
        assert len(site.world.calls("power_off")) == 1


async def test_no_task_that_fits_leaves_the_machine_free(site) -> None:
    async with site.fleet() as fleet:
        assert await fleet.lease(fleet.free()[0]) is None
        assert names(fleet) == ["one-name", "two-name"]


async def test_a_machine_cannot_be_leased_twice(site) -> None:
    async with site.fleet() as fleet:
        await site.store.tasks.submit([NewTask(category="url", target="x") for _ in range(3)])
        one = fleet.free()[0]
        leases = await asyncio.gather(fleet.lease(one), fleet.lease(one))
        assert [lease is not None for lease in leases] == [True, False]
        assert (await site.store.tasks.counts())[Status.PENDING] == 2


async def test_no_more_machines_than_allowed(site) -> None:
    site.cuckoo = CuckooSection(max_machines_count=1)
    async with site.fleet() as fleet:
        two = fleet.free()[1]
        lease = await site.lease(fleet)
        await site.store.tasks.submit([NewTask(category="url", target="x")])
        assert fleet.free() == []
        assert await fleet.lease(two) is None
        await fleet.release(lease)
        assert names(fleet) == ["one-name", "two-name"]


async def test_no_more_starts_at_once_than_allowed(site) -> None:
    site.cuckoo = CuckooSection(max_vmstartup_count=1)
    site.world.behave("restore_and_start", Slow(seconds=0.001))
    async with site.fleet() as fleet:
        leases = [await site.lease(fleet, name) for name in ("one-name", "two-name")]
        await asyncio.gather(*(lease.restore_and_start() for lease in leases))
        assert site.world.running() == ["one", "two"]
        assert site.world.max_starting == 1


async def test_no_more_starts_at_once_than_one_hypervisor_allows(site) -> None:
    async with FakeHypervisor() as other:
        for label in ("three", "four"):
            other.add(label, with_guest=False)
        site.worlds["other"] = other
        settings = site.settings()
        slow = replace(settings.machinery["fake"], max_vmstartup_count=1)
        settings = replace(settings, machinery={**settings.machinery, "fake": slow})
        gate = asyncio.Event()
        for world in (site.world, other):
            world.behave("restore_and_start", Slow(until=gate))
        async with site.fleet(settings) as fleet:
            leases = [await site.lease(fleet, machine.name) for machine in fleet.free()]
            starts = asyncio.gather(*(lease.restore_and_start() for lease in leases))
            await other.until(lambda: other.max_starting == 2)
            gate.set()
            await starts
            assert site.world.running() == ["one", "two"]
            assert (site.world.max_starting, other.max_starting) == (1, 2)


async def test_close_powers_off_what_is_leased(site) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
    assert site.world.running() == []
    assert not (await site.row()).locked


async def test_what_a_lease_can_do(site, tmp_path: Path) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        await lease.start_capture(tmp_path / "dump.pcap")
        await lease.screenshot(tmp_path / "shot")
        await lease.reboot()
        await lease.dump_memory(tmp_path / "memory.dmp")
        await lease.stop_capture()
        await lease.power_off()
        assert {"dump.pcap", "memory.dmp", "shot"} <= {path.name for path in tmp_path.iterdir()}
        with pytest.raises(WrongState, match="poweroff"):
            await lease.reboot()


async def test_where_the_guest_is_reached(site, tmp_path: Path) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        assert lease.address.resultserver_ip == "192.168.55.1"
        await fleet.release(lease)
    site.capabilities = Capability.NONE
    settings = site.settings()
    [one, two] = settings.machinery["fake"].machines
    there = replace(one, ip="10.1.2.3", resultserver_ip="10.1.2.1", resultserver_port=2099)
    fake = replace(settings.machinery["fake"], machines=(there, replace(two, ip="2001:db8::2")))
    async with site.fleet(replace(settings, machinery={"fake": fake})) as fleet:
        address = (await site.lease(fleet)).address
        assert address.agent == "10.1.2.3:8000"
        assert (address.resultserver_ip, address.resultserver_port) == ("10.1.2.1", 2099)
        assert address.sockets == {}
        assert (await site.lease(fleet, "two-name")).address.agent == "[2001:db8::2]:8000"


async def test_what_a_backend_is_told(site) -> None:
    plugins = load_plugins([fake_plugin(site.world)])
    [config] = backend_configs(site.settings(), plugins)
    assert config.services == (Service("results", "tcp", 2042),)
    assert config.taps is None
    assert [machine.resultserver_ip for machine in config.machines] == ["192.168.55.1"] * 2
    assert config.options == {"colour": "grey"}
    assert config.state_dir == site.cwd / "machinery" / "fake"
    assert stat.S_IMODE(config.state_dir.stat().st_mode) == 0o700
    routing = RoutingSection(route="sinkhole", sinkhole_dns_port=5353, sinkhole_http_port=8080)
    [config] = backend_configs(replace(site.settings(), routing=routing), plugins)
    assert config.services == (
        Service("results", "tcp", 2042),
        Service("dns", "tcp", 5353),
        Service("dns", "udp", 5353),
        Service("http", "tcp", 8080),
    )


async def test_a_backend_is_told_of_bridges_that_the_rooter_makes(site) -> None:
    plugins = load_plugins([fake_plugin(site.world)])
    rooter = RooterSection(bridges=("qemubr:192.168.55.1/24",))
    settings = replace(site.settings(), rooter=rooter)
    [config] = backend_configs(settings, plugins, rooter_taps)
    assert config.taps is not None
    assert config.taps.bridges == {"qemubr": IPv4Interface("192.168.55.1/24")}
    assert [config] == backend_configs(settings, plugins, rooter_taps), "else it is opened anew"
    assert rooter_taps(site.settings()) is None


# -- starts that go wrong -------------------------------------------------------------------------


async def test_a_start_that_hangs_is_cut_short_and_undone(site) -> None:
    site.world.behave("restore_and_start", Never())
    site.deadlines = replace(site.deadlines, start=0.02)
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        with pytest.raises(OperationTimedOut, match=r"restore_and_start of one: .* 0\.02 s"):
            await lease.restore_and_start()
        methods = [call.method for call in site.world.calls(label="one")]
        assert methods[-3:] == ["restore_and_start", "power_off", "state"]
        await fleet.release(lease)
        assert names(fleet) == ["one-name", "two-name"]


async def test_a_cancelled_start_is_undone_before_the_cancel_goes_on(site) -> None:
    site.world.behave("restore_and_start", Never())
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        starting = asyncio.create_task(lease.restore_and_start())
        await site.world.until(lambda: bool(site.world.calls("restore_and_start")))
        site.world.behave("power_off", Slow(seconds=0.005))
        starting.cancel()
        await site.world.until(lambda: bool(site.world.calls("power_off")))
        starting.cancel()  # once more, in the middle of the undoing
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert [call.outcome for call in site.world.calls("power_off")] == ["done"]


async def test_a_start_that_comes_true_later_is_put_down(site, until) -> None:
    """The order was given up, the machine was off and free: then it runs after all."""
    site.world.behave("restore_and_start", Never(zombie=True))
    site.deadlines = replace(site.deadlines, start=0.02)
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        with pytest.raises(OperationTimedOut):
            await lease.restore_and_start()
        await fleet.release(lease)
        assert "one-name" in names(fleet)
        assert await site.world.rise() == ["one"]
        assert site.world.running() == ["one"]
        await until(fleet, lambda: "one-name" not in names(fleet))
        await until(fleet, lambda: "one-name" in names(fleet))
        assert site.world.running() == []


async def test_without_events_such_a_machine_waits_a_while(site, until) -> None:
    site.capabilities = UNWATCHED
    site.world.behave("restore_and_start", Never(zombie=True))
    # long enough for the row to be looked at before the machine comes back
    site.deadlines = replace(site.deadlines, start=0.02, first_retry=0.5)
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        with pytest.raises(OperationTimedOut):
            await lease.restore_and_start()
        await fleet.release(lease)
        assert "may still be carried out" in ((await site.row()).quarantine or "")
        await site.world.rise()
        await until(fleet, lambda: "one-name" in names(fleet))
        assert site.world.running() == []


async def test_a_machine_that_somebody_else_starts_is_left_alone(site) -> None:
    async with site.fleet() as fleet:
        await site.world.start_by_hand("one")
        async with asyncio.timeout(2):
            while (await site.row()).status != "running":
                await fleet.wait_changed()
        assert site.world.calls("power_off") == []
    assert site.world.running() == ["one"]


async def test_a_missing_snapshot_is_said(site) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        del site.world.machines["one"].snapshots["clean"]
        with pytest.raises(SnapshotNotFound, match="'clean'"):
            await lease.restore_and_start()


# -- releases that go wrong -----------------------------------------------------------------------


async def test_a_machine_that_cannot_be_switched_off_goes_into_quarantine(site, until) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        site.world.behave("power_off", Failing(WrongState("the domain is busy"), times=3))
        await fleet.release(lease)
        row = await site.row()
        assert "could not be switched off: the domain is busy" in (row.quarantine or "")
        assert not row.locked
        assert names(fleet) == ["two-name"]
        await until(fleet, lambda: "one-name" in names(fleet))
        assert site.world.running() == []
        assert (await site.row()).quarantine is None
        assert len(site.world.calls("power_off")) == 4


async def test_one_failed_power_off_is_tried_again_at_once(site) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        site.world.behave("power_off", Failing(WrongState("busy"), times=1))
        await fleet.release(lease)
        assert "one-name" in names(fleet)
        assert site.world.running() == []


async def test_a_power_off_that_hangs_ends_in_quarantine(site) -> None:
    site.deadlines = replace(site.deadlines, power_off=0.02)
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        site.world.behave("power_off", Never())
        await fleet.release(lease)
        assert names(fleet) == ["two-name"]
        site.world.behave("power_off", None)


async def test_a_release_is_finished_though_cancelled(site) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        gate = asyncio.Event()
        site.world.behave("power_off", Slow(until=gate))
        releasing = asyncio.create_task(fleet.release(lease))
        await site.world.until(lambda: bool(site.world.calls("power_off")))
        releasing.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        assert site.world.running() == []
        assert "one-name" in names(fleet)


async def test_a_cancelled_lease_leaves_the_task_in_the_queue(site, monkeypatch) -> None:
    claimed, go_on = asyncio.Event(), asyncio.Event()
    claim = site.store.tasks.claim

    async def slow_claim(*asked: object) -> object:
        task = await claim(*asked)
        claimed.set()
        await go_on.wait()
        return task

    monkeypatch.setattr(site.store.tasks, "claim", slow_claim)
    async with site.fleet() as fleet:
        [task_id] = await site.store.tasks.submit([NewTask(category="url", target="x")])
        leasing = asyncio.create_task(fleet.lease(fleet.free()[0]))
        await claimed.wait()
        leasing.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await leasing
        assert (await site.store.tasks.get(task_id)).status is Status.PENDING
        assert not (await site.row()).locked
        assert "one-name" in names(fleet)


async def test_a_full_disk_keeps_the_machine_out_until_it_can_be_written(
    site, until, monkeypatch
) -> None:
    async def no_room(_operation: object) -> None:
        raise Unavailable("The disk that holds the database is full")

    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        with monkeypatch.context() as full:
            full.setattr(site.store.database, "write", no_room)
            await fleet.release(lease)
            assert site.world.running() == []
            assert names(fleet) == ["two-name"]
        await until(fleet, lambda: "one-name" in names(fleet))
        assert not (await site.row()).locked


# -- quarantine -----------------------------------------------------------------------------------


async def test_quarantine_of_a_leased_machine_counts_from_its_release(site, until) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        await fleet.quarantine("one-name", "the agent never answered")
        assert (await site.row()).quarantine == "the agent never answered"
        await asyncio.sleep(0)
        assert site.world.running() == ["one"]  # it is still the task's
        await fleet.release(lease)
        assert names(fleet) == ["two-name"]
        await until(fleet, lambda: "one-name" in names(fleet))
        assert (await site.row()).quarantine is None


async def test_each_quarantine_without_a_good_run_is_longer(site, until) -> None:
    async with site.fleet() as fleet:
        slot = fleet._slots["one-name"]
        for failures in (1, 2, 3):
            await fleet.quarantine("one-name", "the agent never answered")
            await until(fleet, lambda: "one-name" in names(fleet))
            assert slot.failures == failures
        await fleet.release(await site.lease(fleet))
        assert slot.failures == 0


async def test_a_machine_the_hypervisor_does_not_know(site, until) -> None:
    settings = site.settings()
    site.world.remove("two")
    async with site.fleet(settings) as fleet:
        assert names(fleet) == ["one-name"]
        reason = (await site.row("two-name")).quarantine
        assert reason == (
            "'two' is not known to the hypervisor; it has: one "
            "(correct 'label' in conf/fake.conf [two-name])"
        )
        site.world.add("two", with_guest=False)
        await until(fleet, lambda: "two-name" in names(fleet))
        assert site.world.calls("power_off", "two") == []  # nobody of ours started it


# -- backends -------------------------------------------------------------------------------------


async def test_a_backend_that_cannot_be_opened_comes_later(site, until) -> None:
    await site.world.down("no such socket")
    async with site.fleet() as fleet:
        assert fleet.free() == []
        row = await site.row()
        assert row.quarantine == "fake cannot be used: no such socket"
        assert row.status == "unreachable"
        assert fleet.result_addresses() == []
        listened: list[tuple[list[str], list[tuple[str, int]]]] = []

        async def listen() -> None:
            listened.append((names(fleet), fleet.result_addresses()))

        fleet.on_opened = listen
        await site.world.up()
        await until(fleet, lambda: names(fleet) == ["one-name", "two-name"])
        assert listened == [([], [("192.168.55.1", 2042)])], "the way for its results comes first"
        assert (await site.row()).quarantine is None
        await fleet.release(await site.lease(fleet))


async def test_a_bad_configuration_of_one_does_not_stop_the_other(site) -> None:
    async with FakeHypervisor() as other:
        other.add("three", with_guest=False)
        other.behave("open", Failing(BadConfig("no such uri: acme://")))
        site.worlds["other"] = other
        async with site.fleet() as fleet:
            assert names(fleet) == ["one-name", "two-name"]
            row = await site.row("three-name")
            assert row.quarantine == "other cannot be used: no such uri: acme://"
            assert len(other.calls("open")) == 1


async def test_two_backends_at_once(site) -> None:
    async with FakeHypervisor() as other:
        other.add("one", with_guest=False).label = "one"
        other.add("three", with_guest=False)
        site.worlds["other"] = other
        settings = site.settings()
        section = settings.machinery["other"]
        renamed = (replace(section.machines[0], name="other-one"), section.machines[1])
        machinery = {**settings.machinery, "other": replace(section, machines=renamed)}
        async with site.fleet(replace(settings, machinery=machinery)) as fleet:
            assert names(fleet) == ["one-name", "two-name", "other-one", "three-name"]
            first = await site.lease(fleet, "one-name")
            second = await site.lease(fleet, "other-one")
            assert (first.machine.manager, second.machine.manager) == ("fake", "other")
            await second.restore_and_start()
            assert (site.world.running(), other.running()) == ([], ["one"])
            await other.down()
            await fleet.release(second)
            assert "other-one" not in names(fleet)
            assert "two-name" in names(fleet)
            await other.up()


async def test_faults_that_no_retry_mends_are_all_said_at_once(site) -> None:
    settings = site.settings()
    [one, two] = settings.machinery["fake"].machines
    doubled = replace(settings.machinery["fake"], machines=(one, two, replace(two, label="one")))
    cuckoo = CuckooSection(machinery=("fake", "acme"))
    there = ", ".join(sorted({"fake", *load_plugins()}))  # what else is installed is not ours
    with pytest.raises(ConfigError) as caught:
        async with site.fleet(replace(settings, cuckoo=cuckoo, machinery={"fake": doubled})):
            pytest.fail("it opened")
    assert caught.value.faults == [
        f"[cuckoo] machinery: no plugin for 'acme' could be loaded; there are: {there}",
        "machine 'two-name': this name is given to more than one machine",
        "conf/fake.conf: more than one machine has the label 'one'",
    ]


async def test_the_hypervisor_goes_away_and_comes_back(site, until) -> None:
    async with site.fleet() as fleet:
        assert [machine.status for machine in fleet.free()] == ["poweroff", "poweroff"]
        await until(fleet, lambda: site.world.watched == 1)
        await site.world.down("libvirtd was killed")
        await until(fleet, lambda: fleet.free() == [])
        assert [m.status for m in await fleet.machines()] == ["unreachable", "unreachable"]
        await site.world.up()
        await until(fleet, lambda: names(fleet) == ["one-name", "two-name"])
        assert [m.status for m in await fleet.machines()] == ["poweroff", "poweroff"]
        assert len(site.world.calls("open")) == 1


async def test_a_stream_of_events_that_ends_is_begun_again(site, until) -> None:
    async with site.fleet() as fleet:
        await until(fleet, lambda: site.world.watched == 1)
        site.world.end_streams()
        await until(fleet, lambda: fleet.free() == [])
        await until(fleet, lambda: names(fleet) == ["one-name", "two-name"])
        await site.world.start_by_hand("two")
        await until(fleet, lambda: fleet.free()[1].status == "running")


async def test_without_events_a_dead_hypervisor_costs_no_task(site, until) -> None:
    site.capabilities = UNWATCHED
    async with site.fleet() as fleet:
        one = fleet.free()[0]
        [task_id] = await site.store.tasks.submit([NewTask(category="url", target="x")])
        await site.world.down()
        assert await fleet.lease(one) is None
        assert (await site.store.tasks.get(task_id)).status is Status.PENDING
        assert (await site.row()).quarantine == "fake does not answer"
        await site.world.up()
        await until(fleet, lambda: "one-name" in names(fleet))


async def test_without_events_the_state_is_asked_for_and_written(site) -> None:
    site.capabilities = UNWATCHED
    site.deadlines = replace(site.deadlines, state=0.1)
    async with site.fleet() as fleet:
        assert [m.status for m in await fleet.machines()] == ["poweroff", "poweroff"]
        await site.world.start_by_hand("one")
        assert [m.status for m in await fleet.machines()] == ["running", "poweroff"]
        assert (await site.row()).status == "running"
        site.world.behave("state", Never(), label="one")
        assert [m.status for m in await fleet.machines()] == ["unreachable", "poweroff"]


async def test_the_state_is_asked_for_once_a_second_at_most(site) -> None:
    site.capabilities = UNWATCHED
    site.deadlines = replace(site.deadlines, fresh=60)
    async with site.fleet() as fleet:
        await asyncio.gather(*(fleet.machines() for _ in range(5)))
        assert len(site.world.calls("state", "one")) == 1


# -- a machine that stops by itself ---------------------------------------------------------------


async def stops(lease: Lease, act: Callable[[], Awaitable[None]]) -> tuple[str, str]:
    waiting = asyncio.create_task(lease.wait_stopped())
    await asyncio.sleep(0)
    await act()
    async with asyncio.timeout(2):
        change = await waiting
    return change.label, change.state


@pytest.mark.parametrize("capabilities", [ALL, UNWATCHED])
async def test_a_machine_that_dies_is_noticed(site, capabilities: Capability) -> None:
    site.capabilities = capabilities
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await site.world.start_by_hand("one")  # events of an earlier run come late
        await lease.restore_and_start()
        assert await stops(lease, lambda: site.world.kill("one")) == ("one", "aborted")
        await fleet.release(lease)
        assert site.world.history("one")[-2:] == [MachineState.ABORTED, POWEROFF]


@pytest.mark.parametrize("capabilities", [ALL, UNWATCHED])
async def test_a_hypervisor_that_stays_away_is_noticed(site, capabilities: Capability) -> None:
    site.capabilities = capabilities
    site.deadlines = replace(site.deadlines, away=0.03)
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        assert await stops(lease, site.world.down) == ("one", "unreachable")
        await site.world.up()


@pytest.mark.parametrize("capabilities", [ALL, UNWATCHED])
async def test_a_hypervisor_that_was_away_for_a_moment_ends_nothing(
    site, capabilities: Capability
) -> None:
    site.capabilities = capabilities

    def asked() -> str:
        return site.world.calls("state", "one")[-1].outcome

    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        waiting = asyncio.create_task(lease.wait_stopped())
        for times in (1, 2):  # each absence has the whole of the patience
            await site.world.down()
            await site.world.until(lambda: asked() == "BackendUnavailable")
            await site.world.up()
            await site.world.until(lambda: asked() == "done")
            assert not waiting.done(), times
        await site.world.down()
        await site.world.kill("one", "killed meanwhile")  # of which no event tells
        await site.world.up()
        async with asyncio.timeout(2):
            assert (await waiting).state is MachineState.ABORTED


async def test_what_the_lease_does_itself_is_no_stop(site, tmp_path: Path, until) -> None:
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        await lease.restore_and_start()
        waiting = asyncio.create_task(lease.wait_stopped())
        await lease.dump_memory(tmp_path / "memory.dmp")
        await lease.reboot()
        site.world.end_streams()
        await until(fleet, lambda: site.world.watched == 0)
        await lease.power_off()
        await until(fleet, lambda: site.world.watched == 1)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


# -- after a crash --------------------------------------------------------------------------------


async def crash(site) -> int:
    """A fleet's process dies while a machine runs; the task's id."""
    async with site.fleet():
        [task_id] = await site.store.tasks.submit([NewTask(category="url", target="x")])
    assert await site.store.tasks.claim(await site.row()) is not None
    await site.world.start_by_hand("one")
    return task_id


async def test_what_a_dead_process_left_is_powered_off_and_unlocked(site) -> None:
    await crash(site)
    await site.world.start_by_hand("two")
    async with site.fleet() as fleet:
        assert names(fleet) == ["two-name"]
        await fleet.recover()
        assert names(fleet) == ["one-name", "two-name"]
        assert site.world.running() == ["two"]  # nobody of ours held it
        assert not (await site.row()).locked


async def test_what_cannot_be_taken_back_now_is_taken_back_later(site, until) -> None:
    await crash(site)
    site.world.behave("power_off", Failing(WrongState("busy"), times=2))
    async with site.fleet() as fleet:
        await fleet.recover()
        row = await site.row()
        assert not row.locked
        assert row.quarantine == "left behind by an earlier process: busy"
        await until(fleet, lambda: "one-name" in names(fleet))
        assert site.world.running() == []


async def test_what_was_left_is_taken_back_when_the_hypervisor_answers(site, until) -> None:
    await crash(site)
    await site.world.down()
    async with site.fleet() as fleet:
        await fleet.recover()
        assert not (await site.row()).locked
        await site.world.up()
        await until(fleet, lambda: "one-name" in names(fleet))
        assert site.world.running() == []


async def test_a_quarantine_of_an_earlier_process_is_looked_at_again(site) -> None:
    async with site.fleet() as fleet:
        await fleet.quarantine("one-name", "the agent never answered")
    assert (await site.row()).quarantine
    async with site.fleet() as fleet:
        assert names(fleet) == ["two-name"]
        await fleet.recover()
        assert names(fleet) == ["one-name", "two-name"]
        assert (await site.row()).quarantine is None


# -- plugins with bugs ----------------------------------------------------------------------------


async def test_what_a_plugin_must_not_raise_is_contained(site) -> None:
    site.world.behave("restore_and_start", Failing(KeyError("oops")))  # type: ignore[arg-type]  # a bug
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        with pytest.raises(Exception, match="KeyError: 'oops'") as caught:
            await lease.restore_and_start()
        assert isinstance(caught.value.__cause__, KeyError)
        await fleet.release(lease)
        assert "one-name" in names(fleet)


@pytest.mark.parametrize("kind", [WrongState, KeyError])
async def test_a_password_in_what_a_plugin_raises_is_not_shown(
    site, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    settings = site.settings()
    fake = replace(settings.machinery["fake"], options={"pwd": Secret("s3kret")})
    trouble = kind("https://root:s3kret@host/sdk refused")
    site.world.behave("restore_and_start", Failing(trouble))  # type: ignore[arg-type]  # or a bug
    async with site.fleet(replace(settings, machinery={"fake": fake})) as fleet:
        lease = await site.lease(fleet)
        with pytest.raises(MachineryError, match=r"https://root:\*\*\*@host/sdk refused") as caught:
            await lease.restore_and_start()
        assert isinstance(caught.value, MachineryError if kind is KeyError else kind)
        await fleet.release(lease)
    assert "s3kret" not in "".join(traceback.format_exception(caught.value))
    assert "s3kret" not in capsys.readouterr().out


async def test_an_unreachable_hypervisor_during_a_start_is_said(site) -> None:
    gate = asyncio.Event()
    site.world.behave("restore_and_start", Slow(until=gate))
    async with site.fleet() as fleet:
        lease = await site.lease(fleet)
        starting = asyncio.create_task(lease.restore_and_start())
        await site.world.until(lambda: bool(site.world.calls("restore_and_start")))
        await site.world.down("libvirtd was killed")
        with pytest.raises(BackendUnavailable, match="libvirtd was killed"):
            await starting
        await fleet.release(lease)
        assert "could not be switched off: libvirtd was killed" in (
            (await site.row()).quarantine or ""
        )
        await site.world.up()
