"""What an analysis leaves in the figures of ``/metrics``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakekit import Site
from prometheus_client.parser import text_string_to_metric_families
from routekit import LO, rooter

from cuckoo_api.testing.fake import scripts

pytestmark = pytest.mark.slow


async def figures(site: Site, name: str) -> dict[str, float]:
    """The values of one name, by their label if they have one."""
    text = (await site.read("/metrics")).decode()
    return {
        "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_the_phases_of_an_analysis_are_timed_and_its_results_counted(site: Site) -> None:
    site.add("one")
    await site.start()
    task = await site.analyse()
    await site.free()

    counts = await figures(site, "cuckoo_analysis_phase_seconds_count")
    assert counts == {"restore": 1, "agent": 1, "run": 1, "report": 1}
    folder = site.folder(task["id"])
    delivered = [*(folder / "files").iterdir(), *(folder / "logs").iterdir()]
    delivered.append(folder / "analysis.log")
    [kept] = (await figures(site, "cuckoo_result_bytes_total")).values()
    assert kept >= sum(path.stat().st_size for path in delivered) > len(scripts.DROPPED)
    assert (await figures(site, "cuckoo_tasks"))["reported"] == 1
    assert await figures(site, "cuckoo_machines") == {"poweroff": 1}
    assert await figures(site, "cuckoo_machine_quarantined") == {"one": 0}


async def test_a_phase_that_failed_is_not_timed(site: Site) -> None:
    site.add("one", silent=True)
    site.configure("cuckoo", max_attempts=1)
    site.configure("timeouts", agent=0.2)
    await site.start()
    await site.until(await site.submit(), "failed_analysis")
    await site.free()

    counts = await figures(site, "cuckoo_analysis_phase_seconds_count")
    assert counts == {"restore": 1, "agent": 0, "run": 0, "report": 0}
    assert await figures(site, "cuckoo_machine_quarantined") == {"one": 1}


async def test_the_state_of_each_vpn_is_a_figure(site: Site) -> None:
    site.add("one")
    down = replace(LO, name="vpn1", interface="nowhere0")
    async with rooter(site, LO, down):
        await site.start()
        await site.get("/vpn/status")
        found = await figures(site, "cuckoo_vpn_status")
    expected = dict.fromkeys(
        [f"{status}vpn{number}" for number in (0, 1) for status in ("up", "down", "stale")], 0
    )
    assert found == expected | {"upvpn0": 1, "downvpn1": 1}
