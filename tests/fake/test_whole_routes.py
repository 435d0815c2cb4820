"""Routes of tasks: what cannot be had is never replaced by another, and holds up nobody else."""

from __future__ import annotations

from dataclasses import replace

import aiohttp
import pytest
from fakekit import Gate, Site
from routekit import GUEST, LO, on_a_network, rooter

from cuckoo_api.network import vpn
from cuckoo_api.network.rooter import policy

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _guests_are_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "check_address", lambda _: None)


async def test_a_route_without_a_rooter_fails_closed_and_the_others_go_on(site: Site) -> None:
    site.add("one")
    site.configure("routing", internet="lo")
    await site.start()
    task = await site.until(await site.submit(options="route=internet"), "failed_analysis")
    assert "The route internet cannot be given to the guest" in task["errors"][0]
    assert site.guest("one").runs == []
    assert (await site.analyse())["route"] == "none"
    await site.get("/vpn/status", 500)


async def test_a_task_whose_route_is_down_waits_where_it_is_to_wait(site: Site) -> None:
    site.add("one")
    site.configure("routing", internet="nowhere0", on_down="wait")
    await site.start()
    routed = await site.submit(options="route=internet")
    assert (await site.analyse())["status"] == "reported"
    assert (await site.task(routed))["status"] == "pending"


async def test_a_task_whose_route_is_down_fails_where_it_is_to_fail(site: Site) -> None:
    site.add("one")
    site.configure("routing", internet="nowhere0")
    await site.start()
    task = await site.until(await site.submit(options="route=internet"), "failed_analysis")
    assert task["errors"] == [
        "The route internet cannot be had: internet: there is no interface nowhere0 that is up"
    ]


async def test_a_route_that_is_not_set_up_is_refused_with_those_that_are(site: Site) -> None:
    site.add("one")
    await site.start()
    with pytest.raises(AssertionError, match=r"route='vpn9' is not offered; there is none"):
        await site.submit(options="route=vpn9")
    with pytest.raises((AssertionError, aiohttp.ClientError), match="not offered"):
        await site.submit(options="route=vpn:random")


async def test_a_guest_has_its_route_for_as_long_as_it_runs(site: Site) -> None:
    gate = Gate()
    on_a_network(site, gate)
    async with rooter(site, LO) as kernel:
        await site.start()
        [service] = kernel.guards["guests0"]
        assert (service.protocol, service.port) == (
            "tcp",
            site.settings.machinery["fake"].machines[0].resultserver_port,
        ), "the result server, and no more"
        task_id = await site.submit(options="route=vpn:es")
        await site.running("one")
        assert kernel.open[GUEST].interface == "lo"
        gate.open.set()
        task = await site.until(task_id, "reported")
        assert (task["route"], task["guest"]["exit_address"]) == ("vpn0", None)
        assert kernel.open == kernel.led == {}


async def test_the_state_of_each_vpn_is_told(site: Site) -> None:
    on_a_network(site)
    down = replace(LO, name="vpn1", interface="nowhere0", description="")
    async with rooter(site, LO, down):
        await site.start()
        status = await site.get("/vpn/status")
    assert status["vpns"] == {"vpn0": True, "vpn1": False}
    first, second = status["details"]
    assert first["since"]
    assert first == {
        "name": "vpn0", "description": "Spain, Europe", "interface": "lo", "status": "up",
        "since": first["since"], "proof": "none", "peer": "", "rx_bytes": first["rx_bytes"],
        "tx_bytes": first["tx_bytes"], "error": None,
    }  # fmt: skip
    assert (second["status"], second["error"]) == (
        "down", "there is no interface nowhere0 that is up",
    )  # fmt: skip


async def test_an_analysis_whose_rooter_goes_away_is_not_kept(site: Site) -> None:
    gate = Gate()
    on_a_network(site, gate)
    site.configure("cuckoo", max_attempts=1)
    async with rooter(site, LO):
        await site.start()
        task_id = await site.submit(options="route=vpn0")
        await site.running("one")
    task = await site.until(task_id, "failed_analysis")
    assert task["errors"] == ["The rooter went away in the middle of the analysis"]
    assert (await site.machine("one"))["quarantine"] is None, "it is not to blame"


async def test_a_guest_on_a_bridge_of_the_rooter_s_needs_it_without_a_route_too(
    site: Site,
) -> None:
    gate = Gate()
    on_a_network(site, gate)
    site.configure("cuckoo", max_attempts=1)
    site.configure("rooter", bridges=("guests0:192.168.55.1/24",))
    async with rooter(site) as kernel:
        await site.start()
        assert "guests0" in kernel.made
        task_id = await site.submit()
        await site.running("one")
    task = await site.until(task_id, "failed_analysis")
    assert task["errors"] == ["The rooter went away in the middle of the analysis"]
    task = await site.until(await site.submit(), "failed_analysis")
    assert task["errors"] == ["The route none cannot be given: Rooter not available"]
    assert (await site.machine("one"))["quarantine"] is None, "it is not to blame"


async def test_a_task_waits_for_a_rooter_that_comes_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vpn, "PERIOD", 0.05)
    gate = Gate()
    on_a_network(site, gate)
    site.configure("routing", on_down="wait", drop=True)
    async with rooter(site):
        await site.start()
        task_id = await site.submit(options="route=drop")
        await site.running("one")
    task = await site.until(task_id, "pending")
    assert task["errors"] == ["The rooter went away in the middle of the analysis"]
    gate.open.set()
    assert (await site.analyse())["route"] == "none", "it holds up nobody else"
    assert (await site.task(task_id))["status"] == "pending"
    async with rooter(site):
        assert (await site.until(task_id, "reported"))["route"] == "drop"


async def test_a_waiting_task_goes_on_when_its_vpn_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vpn, "PERIOD", 0.05)
    monkeypatch.setattr(vpn, "look_at", look_at := Looks())
    on_a_network(site)
    site.configure("routing", on_down="wait")
    async with rooter(site, LO):
        await site.start()
        waiting = await site.submit(options="route=vpn0")
        await site.analyse()
        assert (await site.task(waiting))["status"] == "pending"
        look_at.up = True
        assert (await site.until(waiting, "reported"))["route"] == "vpn0"


class Looks:
    """A VPN that is up when the test says so."""

    up = False

    async def __call__(self, *_: object) -> vpn.Look:
        return vpn.Look(present=self.up, probed=self.up, address="203.0.113.1")
