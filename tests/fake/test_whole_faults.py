"""What the infrastructure does wrong costs an attempt and a machine's rest, never a task."""

from __future__ import annotations

import errno
import os

import pytest
from fakekit import Gate, Site

from cuckoo_api.artefacts import AnalysisFolder, folder
from cuckoo_api.artefacts.write import write_whole
from cuckoo_api.fleet import Deadlines
from cuckoo_api.machinery import BackendUnavailable, MachineryError
from cuckoo_api.reporting import service as reporting
from cuckoo_api.testing.fake import Dies, Failing, GuestRun, Never, scripts

pytestmark = pytest.mark.slow


async def test_an_agent_that_never_answers_is_another_machines_turn(site: Site) -> None:
    site.configure("timeouts", agent=0.5)
    site.add("bad", absent=True)
    site.add("worse", silent=True)
    gate = Gate()
    site.add("good", gate)
    await site.start()
    await site.submit(machine="good")
    await site.running("good")
    task_id = await site.submit()
    await site.quarantined("bad", "worse")
    gate.open.set()
    task = await site.until(task_id, "reported")

    assert task["machine"] == "good"
    for label, error in zip(("bad", "worse"), sorted(task["errors"]), strict=True):
        agent = site.world.folder / f"{label}.agent"
        assert error == f"{label}: The agent at unix:{agent} did not answer within 0.5 s"
        assert (await site.machine(label))["quarantine"] == error
        assert site.world.starts(label) == 1
    assert (await site.machine("good"))["quarantine"] is None
    await site.free()


async def test_after_three_attempts_a_task_is_given_up(site: Site) -> None:
    labels = ("one", "two", "three", "four")
    for label in labels:
        site.add(label)
    site.world.behave("restore_and_start", Dies())
    await site.start()
    task = await site.until(await site.submit(), "failed_analysis")

    tried = {error.partition(":")[0] for error in task["errors"]}
    assert (len(tried), len(task["errors"])) == (3, 3)
    assert task["completed_on"] is not None
    await site.free()
    assert sum(site.world.starts(label) for label in labels) == 3
    [left] = set(labels) - tried
    assert (await site.machine(left))["quarantine"] is None
    # nothing was analysed, and so there is nothing to report
    await site.get(f"/tasks/report/{task['id']}", status=404)


async def test_a_clients_old_words_for_a_task_that_failed(site: Site) -> None:
    site.configure("cuckoo", max_attempts=1)
    site.configure("api", legacy_statuses=True)
    site.add("one")
    site.world.behave("restore_and_start", Failing(MachineryError("bad snapshot")))
    await site.start()

    assert (await site.until(await site.submit(), "reported"))["errors"]
    await site.free()


async def test_a_machine_killed_in_the_middle_is_another_machines_turn(site: Site) -> None:
    site.add("one", scripts.hangs)
    site.add("two")
    await site.start()
    task_id = await site.submit(machine="")
    await site.running("one")
    await site.world.kill("one", "killed by signal 9")
    task = await site.until(task_id, "reported")

    assert task["machine"] == "two"
    assert task["errors"] == ["one: aborted in the middle of the analysis. killed by signal 9"]
    assert (await site.machine("one"))["quarantine"] == task["errors"][0]
    # of the broken attempt nothing is left in the folder
    assert "the sample ended" in (site.folder(task_id) / "analysis.log").read_text()
    await site.free()


async def test_a_machine_that_dies_under_its_guest_is_no_fault_of_the_sample(site: Site) -> None:
    site.add("one", scripts.dies)
    site.add("two")
    await site.start()
    task = await site.analyse()

    assert (task["machine"], len(task["errors"])) == ("two", 1)
    await site.free()


async def test_a_machine_that_dies_at_its_start_is_another_machines_turn_at_once(
    site: Site,
) -> None:
    site.add("one", absent=True)
    site.add("two")
    site.world.behave("restore_and_start", Dies(), label="one")
    await site.start()
    task = await site.analyse()

    assert task["machine"] == "two"
    assert task["errors"] == ["one: aborted before its agent answered. the process was killed"]
    assert (await site.machine("one"))["quarantine"] == task["errors"][0]
    await site.free()


async def test_a_revert_that_fails_is_another_machines_turn(site: Site) -> None:
    site.add("one")
    site.add("two")
    site.world.behave("restore_and_start", Failing(MachineryError("bad snapshot")), label="one")
    await site.start()
    task = await site.analyse()

    assert (task["machine"], task["errors"]) == ("two", ["one: bad snapshot"])
    assert (await site.machine("one"))["quarantine"] == "one: bad snapshot"
    assert site.world.starts("one") == 0
    await site.free()


async def test_a_revert_that_never_ends_is_given_up(site: Site) -> None:
    site.configure("timeouts", vm_state=0.1)
    site.add("one")
    site.add("two")
    site.world.behave("restore_and_start", Never(zombie=True), label="one")
    await site.start()
    task = await site.analyse()

    assert task["machine"] == "two"
    assert "no answer within 0.1 s" in task["errors"][0]
    assert site.world.calls("power_off", "one")
    await site.free()
    # carried out after all: the machine is seen, and switched off again
    await site.world.rise()
    await site.world.until(lambda: site.world.running() == [])


async def test_a_hypervisor_that_stays_away_for_long_and_comes_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadlines, "of", lambda _: Deadlines(first_reopen=0.02, away=0.05))
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    await site.world.down()
    task = await site.until(task_id, "pending")

    [error] = task["errors"]
    assert error.startswith("one: unreachable in the middle of the analysis.")
    assert "connection refused" in (await site.machine("one"))["quarantine"]
    problems = (await site.get("/readyz", status=503))["problems"]
    assert len(problems) == 1
    assert problems[0].startswith("machine one: ")
    site.guest("one").script = scripts.normal
    await site.world.up()
    assert (await site.until(task_id, "reported"))["machine"] == "one"
    assert await site.get("/readyz")
    await site.free()


async def test_a_hypervisor_that_is_restarted_in_the_middle_costs_the_analysis_nothing(
    site: Site,
) -> None:
    gate = Gate()
    site.add("one", gate)
    site.add("two")
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    await site.world.down("the daemon was killed")
    await site.seen("one", "unreachable")
    await site.seen("two", "unreachable")
    await site.world.up()
    await site.seen("one", "running")
    gate.open.set()
    task = await site.until(task_id, "reported")

    assert (task["machine"], task["errors"]) == ("one", [])
    assert site.world.starts("one") == 1
    await site.free()
    assert [(await site.machine(name))["quarantine"] for name in ("one", "two")] == [None, None]


async def test_an_analysis_that_ends_while_the_hypervisor_is_away_is_reported(site: Site) -> None:
    gate = Gate()
    site.add("one", gate)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    await site.world.down("the daemon was killed")
    gate.open.set()
    await site.until(task_id, "reported")
    waiting = await site.submit()

    assert (await site.machine("one"))["quarantine"] == (
        "it could not be switched off: the daemon was killed"
    )
    assert site.world.running() == ["one"]
    assert (await site.task(waiting))["status"] == "pending"
    await site.world.up()
    assert (await site.until(waiting, "reported"))["errors"] == []
    assert site.world.starts("one") == 2
    await site.free()


async def test_what_somebody_else_does_to_a_machine_is_seen_by_event(site: Site) -> None:
    site.add("one")
    site.add("two")
    await site.start()
    await site.seen("one", "poweroff")
    await site.world.until(lambda: site.world.watched == 1)
    asked = len(site.world.calls("state"))
    await site.world.start_by_hand("one")
    await site.seen("one", "running")
    await site.world.kill("one")
    await site.seen("one", "aborted")
    machines = (await site.get("/machines/list"))["machines"]
    assert [(m["name"], m["status"]) for m in machines] == [("one", "aborted"), ("two", "poweroff")]
    assert len(site.world.calls("state")) == asked  # an event told, not a poll


async def test_a_fault_of_a_machine_is_told_and_mended_without_a_restart(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadlines, "of", lambda _: Deadlines(first_retry=0.02))
    site.add("one")
    site.add("two")
    site.world.machines["one"].faults.append("its disk is full (make room)")
    await site.start()

    assert (await site.machine("one"))["quarantine"] == "its disk is full (make room)"
    assert (await site.analyse())["machine"] == "two"
    task_id = await site.submit(machine="one")
    site.world.machines["one"].faults.clear()
    assert (await site.until(task_id, "reported"))["machine"] == "one"
    await site.free()


async def test_a_hypervisor_that_is_not_there_at_the_start(site: Site) -> None:
    site.add("one")
    site.world.behave("open", Failing(BackendUnavailable("no daemon")))
    await site.start()
    task_id = await site.submit()

    assert (await site.machine("one"))["quarantine"] == "fake cannot be used: no daemon"
    assert (await site.task(task_id))["status"] == "pending"
    site.world.behave("open", None)
    assert (await site.until(task_id, "reported"))["errors"] == []
    await site.free()


async def test_a_machine_that_cannot_be_switched_off_gets_no_other_task(site: Site) -> None:
    site.add("one")
    site.add("two")
    await site.start()
    site.world.behave("power_off", Failing(MachineryError("denied")), label="one")
    assert (await site.analyse())["machine"] == "one"
    assert (await site.machine("one"))["quarantine"] == "it could not be switched off: denied"
    assert (await site.analyse())["machine"] == "two"
    assert site.world.running() == ["one"]
    site.world.behave("power_off", None, label="one")
    await site.stop()
    await site.start()
    await site.free()


async def test_a_full_disk_in_the_middle_costs_an_attempt(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        monkeypatch.setattr(folder, "write_whole", write_whole)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "write_whole", full)
    site.add("one")
    await site.start()
    task = await site.analyse()

    [error] = task["errors"]
    assert "is full" in error
    assert (await site.machine("one"))["quarantine"] is None
    await site.free()


async def test_a_bug_costs_an_attempt_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    create = AnalysisFolder.create

    async def broken(*_: object) -> None:
        monkeypatch.setattr(AnalysisFolder, "create", create)
        raise KeyError("oops")

    monkeypatch.setattr(AnalysisFolder, "create", broken)
    site.add("one")
    await site.start()
    task = await site.analyse()

    assert task["errors"] == ["Internal error: KeyError"]
    await site.free()


async def test_a_report_that_cannot_be_made_fails_the_processing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> str:
        return "the worker was ended by SIGSEGV"

    working = reporting._run
    monkeypatch.setattr(reporting, "_run", dies)
    site.add("one")
    await site.start()
    task = await site.until(await site.submit(), "failed_processing")

    assert task["errors"] == ["No report was written. report: the worker was ended by SIGSEGV"]
    await site.get(f"/tasks/report/{task['id']}", status=404)
    assert list((site.folder(task["id"]) / "reports").iterdir()) == []
    await site.free()

    monkeypatch.setattr(reporting, "_run", working)
    assert await site.get(f"/tasks/rereport/{task['id']}") == {"success": True}
    await site.until(task["id"], "reported")
    assert (await site.get(f"/tasks/report/{task['id']}"))["info"]["id"] == task["id"]


async def test_a_report_that_cannot_be_written_fails_the_reporting(site: Site) -> None:
    async def in_the_way(run: GuestRun) -> None:
        (site.folder(int(run.conf["id"])) / "reports" / "report.json").mkdir()
        await scripts.normal(run)

    site.add("one", in_the_way)
    await site.start()
    task = await site.until(await site.submit(), "failed_reporting")

    [error] = task["errors"]
    assert error.startswith("No report was written. report: IsADirectoryError: ")
    await site.get(f"/tasks/report/{task['id']}", status=404)
    await site.free()

    (site.folder(task["id"]) / "reports" / "report.json").rmdir()
    assert await site.get(f"/tasks/rereport/{task['id']}") == {"success": True}
    await site.until(task["id"], "reported")
    assert (await site.get(f"/tasks/report/{task['id']}"))["info"]["id"] == task["id"]


async def test_a_guest_writes_no_report_of_its_own(site: Site) -> None:
    async def plants(run: GuestRun) -> None:
        await run.upload("reports/report.json", b"{}")
        await run.upload("files/../../reports/x", b"{}")
        await scripts.normal(run)

    site.add("one", plants)
    await site.start()
    task = await site.analyse()

    assert [error.partition(":")[0] for error in task["errors"]] == ["Result server"] * 2
    assert (await site.get(f"/tasks/report/{task['id']}"))["info"]["id"] == task["id"]
    await site.free()
