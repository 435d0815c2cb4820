"""A file goes in over HTTP, a guest runs it, and what it did is served."""

from __future__ import annotations

import functools
import hashlib

import pytest
from fakekit import REAL_WORKER, SAMPLE, Site

from cuckoo_api.machinery import Capability, MachineryError
from cuckoo_api.reporting import service as reporting
from cuckoo_api.testing.fake import Failing, scripts


async def test_a_file_goes_in_and_a_report_comes_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_run", REAL_WORKER)
    site.add("one")
    site.configure("reporting", html=True)
    await site.start()

    task = await site.analyse(name="hello.sh", options="arguments=-v", custom="mine")

    assert (task["errors"], task["machine"], task["custom"]) == ([], "one", "mine")
    assert task["guest"]["status"] == "stopped"
    report = await site.get(f"/tasks/report/{task['id']}")
    assert report["target"]["file"]["name"] == "hello.sh"
    assert report["target"]["file"]["sha256"] == hashlib.sha256(SAMPLE).hexdigest()
    commands = [process["command_line"] for process in report["behavior"]["processes"]]
    assert commands == ["/tmp/sample", "sh -c id"]
    [dropped] = report["dropped"]
    assert (dropped["filepath"], dropped["size"]) == ("/tmp/dropped.txt", len(scripts.DROPPED))
    assert report["network"]["dns"][0]["request"] == "fake.example"
    assert report["info"]["machine"]["name"] == "one"
    assert await site.read(f"/files/get/{report['target']['file']['sha256']}") == SAMPLE
    assert (site.folder(task["id"]) / dropped["path"]).read_bytes() == scripts.DROPPED
    page = (await site.read(f"/tasks/report/{task['id']}/html")).decode()
    for shown in ("hello.sh", "sh -c id", "fake.example", "/tmp/dropped.txt", "data:image/jpeg"):
        assert shown in page
    log = (site.folder(task["id"]) / "analysis.log").read_text()
    assert log.endswith("INFO: the sample ended\n")
    assert (await site.read(f"/pcap/get/{task['id']}"))[:4] == b"\xd4\xc3\xb2\xa1"
    assert (await site.read(f"/tasks/screenshots/{task['id']}/0001"))[:2] == b"\xff\xd8"
    await site.free()


async def test_what_the_guest_was_given(site: Site) -> None:
    site.add("one")
    await site.start()
    await site.analyse(name="hello.sh", timeout=3, package="sh", options="arguments=-v")

    [run] = site.guest("one").runs
    assert run.sample == SAMPLE
    asked = {name: run.conf[name] for name in ("package", "timeout", "options", "file_name")}
    assert asked == {
        "package": "sh", "timeout": "3", "options": "arguments=-v", "file_name": "hello.sh",
    }  # fmt: skip
    await site.free()


async def test_a_url_is_analysed(site: Site) -> None:
    site.add("one")
    await site.start()
    task_id = (await site.post("/tasks/create/url", url="http://e.example/x"))["task_id"]

    assert (await site.until(task_id, "reported"))["errors"] == []
    [run] = site.guest("one").runs
    assert (run.sample, run.conf["category"]) == (None, "url")
    report = await site.get(f"/tasks/report/{task_id}")
    assert report["target"] == {"category": "url", "url": "http://e.example/x"}
    await site.free()


async def test_a_sample_that_never_ends_is_reported_with_what_there_is(site: Site) -> None:
    site.configure("timeouts", default=0.1, critical=0.1)
    site.add("one", scripts.hangs)
    await site.start()
    task = await site.analyse()

    assert task["errors"] == ["The analysis hit the critical timeout after 0 s, terminating."]
    assert "starting the sample" in (site.folder(task["id"]) / "analysis.log").read_text()
    assert (await site.machine("one"))["quarantine"] is None
    await site.free()


@pytest.mark.slow
async def test_an_agent_that_a_sample_killed_is_its_own_fault(site: Site) -> None:
    site.add("one", scripts.kills_agent)
    await site.start()
    task = await site.analyse()

    [error] = task["errors"]
    assert error.startswith("The guest's agent stopped answering: The agent was silent for")
    report = await site.get(f"/tasks/report/{task['id']}")
    assert len(report["behavior"]["processes"]) == 2
    assert error in report["debug"]["errors"]
    assert (await site.machine("one"))["quarantine"] is None
    await site.free()


async def test_an_analyzer_that_fails_says_why(site: Site) -> None:
    site.add("one", scripts.fails)
    await site.start()
    task = await site.analyse()

    assert task["errors"] == ["The guest's analyzer failed: no such package: nonesuch"]
    await site.free()


async def test_a_guest_that_switches_itself_off_is_reported(site: Site) -> None:
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    await site.world.shut_down("one")
    task = await site.until(task_id, "reported")

    assert task["errors"] == ["The guest switched itself off"]
    assert (await site.machine("one"))["quarantine"] is None
    await site.free()


@pytest.mark.slow
async def test_a_guest_that_floods_is_cut_and_reported(site: Site) -> None:
    site.configure("resultserver", upload_max_size=100_000, max_files=20, max_connections=8)
    site.add("one", functools.partial(scripts.floods, size=1 << 20, connections=64))
    await site.start()
    task = await site.analyse()

    assert "Result server: files/flood was cut after 100000 bytes" in task["errors"]
    assert any("more than 8 connections at once" in error for error in task["errors"])
    kept = list((site.folder(task["id"]) / "files").iterdir())
    assert len(kept) <= 20
    assert sum(path.stat().st_size for path in kept) <= 100_000 + len(kept)
    await site.free()


@pytest.mark.slow
async def test_a_guest_that_sends_garbage_breaks_nothing(site: Site) -> None:
    site.add("one", scripts.garbage)
    await site.start()
    task = await site.analyse()

    assert any("etc/passwd" in error for error in task["errors"])
    outside = {path.name for path in site.settings.cwd.iterdir()}
    assert outside == {".engine.lock", "cuckoo.db", "cuckoo.db-shm", "cuckoo.db-wal",
                       "machinery", "storage"}  # fmt: skip
    await site.free()


@pytest.mark.slow
async def test_memory_is_dumped_where_it_is_asked_for(site: Site) -> None:
    site.add("one")
    await site.start()
    plain = await site.analyse()
    dumped = await site.analyse(memory="yes")

    assert not (site.folder(plain["id"]) / "memory.dmp").exists()
    assert (site.folder(dumped["id"]) / "memory.dmp").read_bytes() == b"{}"
    await site.free()


async def test_what_the_hypervisor_cannot_do_costs_a_line_only(site: Site) -> None:
    site.capabilities = Capability.WATCH | Capability.ADDRESS
    site.add("one")
    await site.start()
    task = await site.analyse(memory="yes")

    assert task["errors"] == [
        "No capture of the network: the machine has no interface configured",
        "fake cannot dump a machine's memory",
    ]
    assert await site.get(f"/tasks/screenshots/{task['id']}/0001", status=404)
    await site.free()


async def test_a_dump_that_fails_costs_a_line_only(site: Site) -> None:
    site.add("one")
    site.world.behave("dump_memory", Failing(MachineryError("no room for it")))
    await site.start()
    task = await site.analyse(memory="yes")

    assert task["errors"] == ["No full memory dump: no room for it"]
    await site.free()


async def test_the_next_analysis_sees_nothing_of_the_last(site: Site) -> None:
    site.add("one")
    await site.start()
    await site.analyse(b"first", name="first.sh")
    await site.analyse(b"second", name="second.sh")

    first, second = site.guest("one").runs
    assert first.sample == b"first"
    assert second.sample == b"second"
    assert b"first" not in second.disk.values()
    assert site.world.starts("one") == 2
    await site.free()
