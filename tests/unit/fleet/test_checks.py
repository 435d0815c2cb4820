"""What is wrong with machines is said before a task finds out: all of it, by machine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psutil
import pytest

from cuckoo_api.machinery import Capability, OperationTimedOut
from cuckoo_api.testing.fake import ALL, Failing, FakeHypervisor, Slow, Snapshot

pytestmark = pytest.mark.slow


def names(fleet) -> list[str]:
    return [machine.name for machine in fleet.free()]


def at(site, **ips: str):
    """The settings, with addresses for machines by label."""
    settings = site.settings()
    machinery = {
        name: replace(
            section,
            machines=tuple(replace(m, ip=ips.get(m.label, "")) for m in section.machines),
        )
        for name, section in settings.machinery.items()
    }
    return replace(settings, machinery=machinery)


async def test_all_faults_of_a_machine_are_said_at_once(site) -> None:
    one = site.world.machines["one"]
    one.snapshots = {"base": Snapshot(), "office": Snapshot()}
    one.faults = ["its disk lies on a raw image (convert it to qcow2)"]
    async with site.fleet() as fleet:
        assert names(fleet) == ["two-name"]
        assert (await site.row()).quarantine == (
            "its disk lies on a raw image (convert it to qcow2); "
            "it has no snapshot 'clean', but: base, office "
            "(take it, or correct 'snapshot' in conf/fake.conf [one-name])"
        )


async def test_a_machine_is_used_when_its_faults_are_gone(site, until) -> None:
    one = site.world.machines["one"]
    clean, one.current = one.snapshots.pop("clean"), ""
    one.faults = ["it is locked"]
    async with site.fleet() as fleet:
        one.faults.clear()
        looks = len(site.world.calls("inspect", "one"))
        await site.world.until(lambda: len(site.world.calls("inspect", "one")) >= looks + 2)
        quarantine = (await site.row()).quarantine
        assert quarantine is not None
        assert quarantine.startswith("it has no snapshot 'clean', but: none")
        assert fleet._slots["one-name"].failures == 1  # nobody waits longer for each look
        one.snapshots["clean"] = clean
        await until(fleet, lambda: "one-name" in names(fleet))
        assert (await site.row()).quarantine is None
        assert site.world.calls("power_off") == []  # nobody of ours started it


async def test_a_snapshot_that_is_lost_later_keeps_the_machine_out(site, until) -> None:
    async with site.fleet() as fleet:
        del site.world.machines["one"].snapshots["clean"]
        await fleet.quarantine("one-name", "it did not start")
        looks = len(site.world.calls("inspect", "one"))
        await site.world.until(lambda: len(site.world.calls("inspect", "one")) >= looks + 2)
        assert "no snapshot 'clean'" in ((await site.row()).quarantine or "")
        site.world.machines["one"].snapshots["clean"] = Snapshot()
        await until(fleet, lambda: "one-name" in names(fleet))


async def test_one_machine_under_two_labels_is_used_once(site) -> None:
    async with FakeHypervisor() as other:
        other.add("alias", with_guest=False).uuid = "4711"
        site.world.machines["two"].uuid = "4711"
        site.worlds["other"] = other
        async with site.fleet() as fleet:
            assert names(fleet) == ["one-name", "two-name"]
            assert (await site.row("alias-name")).quarantine == (
                "it is the machine of conf/fake.conf [two-name] under another label "
                "(remove one of the two)"
            )


async def test_an_address_of_another_machine(site) -> None:
    site.world.machines["two"].ip = "10.1.2.3"
    async with site.fleet(at(site, one="10.1.2.3", two="10.1.2.4")) as fleet:
        assert names(fleet) == ["one-name"]
        assert (await site.row("two-name")).quarantine == (
            "its guest has the address 10.1.2.3 of conf/fake.conf [one-name] "
            "(give it one of its own)"
        )


async def test_an_address_of_the_host_itself(site, monkeypatch) -> None:
    [loopback, *_] = psutil.net_if_addrs()["lo"]
    ours = {"br0": [loopback._replace(address="10.1.2.1")], "lo": [loopback]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: ours)
    settings = at(site, one="10.1.2.1", two="127.0.0.1")
    async with site.fleet(settings) as fleet:
        assert names(fleet) == ["one-name", "two-name"]  # the backend knows where its guests are
    site.capabilities = Capability.NONE
    async with site.fleet(settings) as fleet:
        assert names(fleet) == ["two-name"]
        assert (await site.row()).quarantine == (
            "its address 10.1.2.1 is this host's own (correct 'ip' in conf/fake.conf [one-name])"
        )


async def test_a_hypervisor_that_cannot_tell_makes_no_machine_faulty(site) -> None:
    site.world.behave("inspect", Failing(OperationTimedOut("busy")))
    async with site.fleet() as fleet:
        assert names(fleet) == ["one-name", "two-name"]
    site.capabilities = ALL & ~Capability.INSPECT
    site.world.machines["one"].snapshots.clear()
    async with site.fleet() as fleet:
        assert names(fleet) == ["one-name", "two-name"]


async def test_two_snapshots_of_one_name(site, monkeypatch) -> None:
    facts = site.world.facts
    monkeypatch.setattr(
        site.world, "facts", lambda label: replace(facts(label), snapshots=("clean", "clean"))
    )
    async with site.fleet() as fleet:
        assert names(fleet) == []
        assert (await site.row()).quarantine == (
            "2 of its snapshots are named 'clean' (rename the others)"
        )


async def test_many_machines_are_not_all_looked_at_together(site) -> None:
    for number in range(20):
        site.world.add(f"m{number}", with_guest=False)
    site.world.behave("inspect", Slow(until=(gate := asyncio.Event())))
    running = site.fleet()
    opening = asyncio.create_task(running.__aenter__())
    await site.world.until(lambda: len(site.world.calls("inspect")) == 4)
    await asyncio.sleep(0)
    assert len(site.world.calls("inspect")) == 4
    gate.set()
    fleet = await opening
    assert len(fleet.free()) == 22
    await running.__aexit__(None, None, None)


async def test_an_unknown_label_among_many_is_answered_with_the_nearest(site) -> None:
    for number in range(20):
        site.world.add(f"pc{number}", with_guest=False)
    settings = site.settings()
    site.world.machines["One"] = site.world.machines.pop("one")
    async with site.fleet(settings):
        text = (await site.row()).quarantine or ""
        assert text.startswith("'one' is not known to the hypervisor; it has: One and 21 more (")
