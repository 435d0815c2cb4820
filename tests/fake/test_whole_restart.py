"""Stops, restarts and neighbours: a task is in the queue or in its last state, no machine is held.

What a server that was killed leaves is in test_whole_kill.py.
"""

from __future__ import annotations

import json

import pytest
from fakekit import Site

from cuckoo_api.machinery import MachineryError
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.model.task import NewTask, Status
from cuckoo_api.testing.fake import Failing, Never, scripts

pytestmark = pytest.mark.slow


async def test_a_stop_puts_the_running_task_back_and_switches_the_machine_off(site: Site) -> None:
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    await site.stop()

    assert site.world.running() == []
    async with site.store() as store:
        task = await store.tasks.get(task_id)
        assert (task.status, task.errors, task.started_on) == (Status.PENDING, [], None)
        assert not (await store.machines.get("one")).locked
    site.guest("one").script = scripts.normal
    await site.start()
    assert (await site.until(task_id, "reported"))["errors"] == []
    await site.free()


async def test_a_stop_in_the_middle_of_a_start(site: Site) -> None:
    site.add("one")
    site.world.behave("restore_and_start", Never(zombie=True))
    await site.start()
    task_id = await site.submit()
    await site.world.until(lambda: bool(site.world.calls("restore_and_start", "one")))
    await site.stop()

    async with site.store() as store:
        assert (await store.tasks.get(task_id)).status is Status.PENDING
    # what the hypervisor had taken is carried out: the next start sees to it
    site.world.behave("restore_and_start", None)
    await site.world.rise()
    await site.start()
    await site.until(task_id, "reported")
    await site.free()


async def test_a_restart_takes_up_what_an_earlier_process_left(site: Site) -> None:
    site.add("one")
    site.add("two")
    await site.start()
    done = (await site.analyse())["id"]
    await site.stop()
    (site.folder(done) / "reports" / "report.json").unlink()
    async with site.store() as store:
        # as a process leaves it that is killed: one without its report, one in its machine
        assert await store.tasks.transition(done, Status.REPORTED, Status.COMPLETED)
        [lost] = await store.tasks.submit([NewTask(category="url", target="http://e.example/")])
        assert await store.tasks.claim(await store.machines.get("two")) is not None
    await site.world.start_by_hand("two")
    await site.start()

    assert site.world.history("two")[-1] == "poweroff"
    assert (await site.until(done, "reported"))["errors"] == []
    assert (await site.get(f"/tasks/report/{done}"))["info"]["id"] == done
    assert (await site.until(lost, "reported"))["errors"] == []
    await site.free()


async def test_a_machine_that_somebody_else_runs_is_left_alone_at_a_start(site: Site) -> None:
    site.add("one")
    await site.world.start_by_hand("one")
    await site.start()

    assert site.world.running() == ["one"]
    await site.stop()
    assert site.world.running() == ["one"]
    await site.world.shut_down("one")


async def test_a_second_engine_on_the_directory_is_refused_in_one_line(site: Site) -> None:
    site.add("one")
    await site.start()
    with pytest.raises(ConfigError) as refusal:
        await site.beside().start()

    [fault] = refusal.value.faults
    assert fault.startswith(f"another server is already running on {site.settings.cwd} (pid ")
    assert (await site.analyse())["errors"] == []
    await site.free()


async def test_an_api_alone_serves_the_folder_and_wakes_the_engine(site: Site) -> None:
    site.add("one")
    await site.start()
    api = site.beside()
    await api.start(engine=False)
    assert (await api.machine("one"))["status"] == "poweroff"
    task = await api.analyse()

    assert (task["machine"], task["errors"]) == ("one", [])
    assert await api.get(f"/tasks/report/{task['id']}") == await site.get(
        f"/tasks/report/{task['id']}"
    )
    await api.stop()
    await site.free()


async def test_an_api_alone_keeps_tasks_for_the_engine_to_come(site: Site) -> None:
    site.add("one")
    api = site.beside()
    await api.start(engine=False)
    task_id = await api.submit()
    assert (await api.task(task_id))["status"] == "pending"
    assert (await api.get("/readyz"))["problems"] == []
    await site.start()

    assert (await api.until(task_id, "reported"))["errors"] == []
    await api.stop()
    await site.free()


async def test_an_analysis_put_there_by_hand_is_served(site: Site) -> None:
    await site.start(engine=False)
    folder = site.folder(77)
    (folder / "reports").mkdir(parents=True)
    (folder / "shots").mkdir()
    (folder / "reports" / "report.json").write_text(json.dumps({"info": {"id": 77}}))
    (folder / "shots" / "0001.jpg").write_bytes(b"jpeg")
    (folder / "dump.pcap").write_bytes(b"pcap")

    assert await site.get("/tasks/report/77") == {"info": {"id": 77}}
    assert await site.read("/tasks/screenshots/77/0001") == b"jpeg"
    assert await site.read("/pcap/get/77") == b"pcap"


async def test_exit_stops_a_server_in_debug_mode(site: Site) -> None:
    site.add("one", scripts.hangs)
    await site.start(debug=True)
    task_id = await site.submit()
    await site.running("one")
    assert await site.get("/exit") == {"message": "Server stopped"}
    await site.stopped()

    assert site.world.running() == []
    async with site.store() as store:
        assert (await store.tasks.get(task_id)).status is Status.PENDING


async def test_exit_is_refused_otherwise(site: Site) -> None:
    await site.start()

    await site.get("/exit", status=403)
    assert (await site.get("/cuckoo/status"))["tasks"]["total"] == 0


async def test_a_stop_ends_although_a_machine_cannot_be_switched_off(site: Site) -> None:
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    site.world.behave("power_off", Failing(MachineryError("denied")))
    await site.stop()

    assert site.world.running() == ["one"]
    site.world.behave("power_off", None)
    site.guest("one").script = scripts.normal
    await site.start()
    await site.until(task_id, "reported")
    await site.free()
