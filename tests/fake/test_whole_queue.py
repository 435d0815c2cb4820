"""Which task gets which machine, when, and what may be asked of a task meanwhile."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest
from fakekit import Gate, Site

from cuckoo_api.analysis import reboot, scheduler, system
from cuckoo_api.machinery import Capability
from cuckoo_api.testing.fake import ALL, scripts

pytestmark = pytest.mark.slow


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` answers."""

    total: int
    used: int
    free: int


async def test_two_machines_work_side_by_side(site: Site) -> None:
    gate = Gate()
    site.add("one", gate)
    site.add("two", gate)
    await site.start()
    ids = [await site.submit(), await site.submit(), await site.submit()]
    await site.running("one", "two")

    assert [(await site.task(i))["status"] for i in ids] == ["running", "running", "pending"]
    assert (await site.get("/cuckoo/status"))["machines"] == {"total": 2, "available": 0}
    gate.open.set()
    for task_id in ids:
        assert (await site.until(task_id, "reported"))["errors"] == []
    assert site.world.max_parallel == 2
    await site.free()


async def test_no_more_machines_than_allowed_run_at_once(site: Site) -> None:
    site.configure("cuckoo", max_machines_count=1)
    site.add("one")
    site.add("two")
    await site.start()
    for task_id in [await site.submit(), await site.submit(), await site.submit()]:
        await site.until(task_id, "reported")

    assert site.world.max_parallel == 1
    await site.free()


async def test_priority_goes_before_age(site: Site) -> None:
    gate = Gate()
    site.add("one", gate)
    await site.start()
    first = await site.submit(name="first")
    await site.running("one")
    for name, priority in (("low", 1), ("high", 3), ("middle", 2), ("high2", 3)):
        last = await site.submit(name=name, priority=priority)
    gate.open.set()
    for task_id in range(first, last + 1):
        await site.until(task_id, "reported")

    ran = [run.conf["file_name"] for run in site.guest("one").runs]
    assert ran == ["first", "high", "high2", "middle", "low"]
    await site.free()


async def test_a_task_gets_a_machine_that_fits_it(site: Site) -> None:
    site.add("plain")
    site.add("office", tags=("office", "pdf"))
    site.add("other", platform="darwin")
    (site.settings.cwd / "analyzer" / "darwin").mkdir(parents=True)
    (site.settings.cwd / "analyzer" / "darwin" / "analyzer.py").write_text("")
    await site.start()

    assert (await site.analyse(tags="office"))["machine"] == "office"
    assert (await site.analyse(tags="office,pdf"))["machine"] == "office"
    assert (await site.analyse(platform="darwin"))["machine"] == "other"
    assert (await site.analyse(machine="other"))["machine"] == "other"
    assert (await site.analyse())["machine"] == "plain"
    await site.free()


async def test_a_task_that_no_machine_fits_waits_and_holds_up_nobody(site: Site) -> None:
    site.configure("cuckoo", wait_for_machines=True)
    site.add("one")
    await site.start()
    waits = await site.submit(tags="nonesuch", priority=3)
    assert (await site.analyse())["machine"] == "one"
    assert (await site.task(waits))["status"] == "pending"
    await site.free()

    await site.stop()
    site.add("two", tags=("nonesuch",))
    await site.start()
    assert (await site.until(waits, "reported"))["machine"] == "two"
    await site.free()


async def test_a_task_that_no_machine_can_ever_fit_is_refused(site: Site) -> None:
    site.add("one")
    await site.start()
    with pytest.raises(AssertionError, match="nonesuch"):
        await site.submit(tags="nonesuch")

    assert (await site.get("/tasks/list"))["tasks"] == []


async def test_on_a_full_disk_nothing_starts_until_there_is_room(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "RECHECK", 0.02)
    looks: list[int] = []

    def usage(_path: object) -> Usage:
        looks.append(1)
        return Usage(100 << 30, 99 << 30, 1 << 20)

    monkeypatch.setattr(system.shutil, "disk_usage", usage)
    site.configure("cuckoo", freespace=1 << 30)
    site.add("one")
    await site.start()
    task_id = await site.submit()
    problems = (await site.get("/readyz", status=503))["problems"]
    storage = site.settings.storage
    assert problems == [f"disk: 1 MiB free under {storage}, [cuckoo] freespace asks for 1024"]
    async with asyncio.timeout(5):
        while len(looks) < 6:  # it looks again though nothing happens
            await asyncio.sleep(0)
    assert (await site.task(task_id))["status"] == "pending"
    assert site.world.starts("one") == 0
    assert (await site.get("/cuckoo/status"))["paused"] == problems[0]

    monkeypatch.setattr(system.shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 40))
    assert (await site.until(task_id, "reported"))["errors"] == []
    assert (await site.get("/readyz"))["problems"] == []
    assert (await site.get("/cuckoo/status"))["paused"] == ""
    await site.free()


async def test_a_running_task_is_cancelled_and_reported(site: Site) -> None:
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    waiting = await site.submit()
    await site.running("one")
    site.guest("one").script = scripts.normal
    await site.post(f"/tasks/cancel/{task_id}")
    assert (await site.task(task_id))["status"] == "cancelled"

    assert (await site.until(waiting, "reported"))["machine"] == "one"
    task = await site.until(task_id, "cancelled")
    assert task["errors"] == ["The analysis was cancelled"]
    assert (await site.get(f"/tasks/report/{task_id}"))["info"]["id"] == task_id
    assert (await site.machine("one"))["quarantine"] is None
    await site.free()


async def test_a_cancelled_machine_is_off_within_two_seconds(site: Site) -> None:
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    async with asyncio.timeout(2):
        await site.post(f"/tasks/cancel/{task_id}")
        await site.free()
        assert (await site.machine("one"))["status"] == "poweroff"


async def test_a_waiting_task_is_cancelled_and_never_runs(site: Site) -> None:
    gate = Gate()
    site.add("one", gate)
    await site.start()
    first, second = await site.submit(), await site.submit()
    await site.running("one")
    await site.post(f"/tasks/cancel/{second}")
    gate.open.set()
    await site.until(first, "reported")

    assert (await site.task(second))["status"] == "cancelled"
    assert len(site.guest("one").runs) == 1
    await site.free()


async def test_a_task_is_run_again_and_forgotten(site: Site) -> None:
    site.add("one")
    await site.start()
    first = (await site.analyse())["id"]
    second = (await site.get(f"/tasks/reschedule/{first}/2"))["task_id"]

    assert (await site.until(second, "reported"))["priority"] == 2
    assert (await site.task(first))["status"] == "recovered"
    await site.free()
    for task_id in (first, second):
        assert await site.get(f"/tasks/delete/{task_id}") == {"status": "OK"}
        assert not site.folder(task_id).exists()
    assert list((site.settings.storage / "binaries").iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "command"),
    [("linux", "reboot || busybox reboot"), ("windows", "shutdown /r /t 0")],
)
async def test_a_reboot_analysis_lets_the_guest_restart_itself(
    site: Site, platform: str, command: str
) -> None:
    analyzer = site.settings.cwd / "analyzer/windows"
    analyzer.mkdir(parents=True)
    (analyzer / "analyzer.py").touch()
    site.add("one", platform=platform)
    await site.start()
    first = (await site.analyse(platform=platform))["id"]
    answer = await site.get(f"/tasks/reboot/{first}")
    task = await site.until(answer["reboot_id"], "reported")

    assert (task["package"], task["custom"], task["errors"]) == ("reboot", str(first), [])
    assert (site.guest("one").boots, site.world.starts("one")) == (3, 2)
    assert site.world.calls("reboot", "one") == []
    assert site.guest("one").commands[-1] == command
    assert site.guest("one").runs[-1].sample is None
    restart = (await site.get(f"/tasks/report/{task['id']}"))["info"]["restart"]
    assert (restart["parent"], restart["restarted_by"]) == (first, "guest")
    assert restart["restored"] == sorted(set(restart["restored"])) != []
    assert (await site.get(f"/tasks/report/{first}"))["info"]["restart"] is None
    await site.free()


async def test_a_guest_that_does_not_restart_itself_is_reset(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reboot, "PATIENCE", 0.05)
    site.add("one", stubborn=True)
    await site.start()
    first = (await site.analyse())["id"]
    task = await site.until((await site.get(f"/tasks/reboot/{first}"))["reboot_id"], "reported")

    assert task["errors"] == []
    assert [call.outcome for call in site.world.calls("reboot", "one")] == ["done"]
    assert (site.guest("one").boots, site.world.starts("one")) == (3, 2)
    await site.free()


async def test_where_neither_restarts_it_that_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reboot, "PATIENCE", 0.05)
    site.capabilities = ALL & ~Capability.REBOOT
    site.add("one", stubborn=True)
    await site.start()
    first = (await site.analyse())["id"]
    task = await site.until((await site.get(f"/tasks/reboot/{first}"))["reboot_id"], "reported")

    [error] = task["errors"]
    assert error.endswith("fake cannot restart a machine: nothing was restarted")
    await site.free()
