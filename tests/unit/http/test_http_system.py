"""Machines, the server's figures, its health and its end."""

from __future__ import annotations

import os
import socket

import psutil
import pytest
from httpkit import NewSite, Site, machine

from cuckoo_api import __version__
from cuckoo_api.analysis import disk as room
from cuckoo_api.http.keys import SWITCH
from cuckoo_api.model.task import NewTask, Status

pytestmark = pytest.mark.slow

URL = NewTask(category="url", target="http://example.com/")


async def test_a_machine_shows_all_its_fields(site: Site) -> None:
    await site.configure(
        machine(
            "cuckoo1",
            label="win7x64",
            options=["opt1,opt2"],
            tags=["32_bit", "office"],
            interface="vboxnet0",
            snapshot="clean",
        )
    )
    shown = {
        "id": 1,
        "name": "cuckoo1",
        "label": "win7x64",
        "manager": "fake",
        "ip": "192.168.56.101",
        "platform": "windows",
        "tags": ["32_bit", "office"],
        "options": ["opt1,opt2"],
        "interface": "vboxnet0",
        "snapshot": "clean",
        "locked": False,
        "locked_changed_on": None,
        "status": None,
        "status_changed_on": None,
        "resultserver_ip": "192.168.56.1",
        "resultserver_port": 2042,
        "rcparams": {},
        "quarantine": None,
        "task_id": None,
    }
    assert (await site.client.get("/machines/view/cuckoo1")).json == {"machine": shown}
    assert (await site.client.get("/machines/list")).json == {"machines": [shown]}


async def test_a_machine_shows_who_holds_it_and_what_ails_it(site: Site) -> None:
    await site.configure(machine("one"), machine("two"), machine("été 3"))
    await site.store.tasks.submit([URL])
    [one, *_] = await site.store.machines.list()
    await site.store.tasks.claim(one)
    await site.store.machines.set_status("one-label", "fake", "running")
    await site.store.machines.set_quarantine("two", "it never came up")
    held = (await site.client.get("/machines/view/one")).json["machine"]
    assert (held["locked"], held["task_id"], held["status"]) == (True, 1, "running")
    assert held["locked_changed_on"]
    assert held["status_changed_on"]
    listed = (await site.client.get("/machines/list")).json["machines"]
    assert [m["name"] for m in listed] == ["one", "two", "été 3"]
    assert listed[1]["quarantine"] == "it never came up"
    named = await site.client.get("/machines/view/%C3%A9t%C3%A9%203")
    assert named.json["machine"]["name"] == "été 3"


async def test_a_machine_that_is_not_there(site: Site) -> None:
    assert (await site.client.get("/machines/list")).json == {"machines": []}
    for name in ["nope", "1", "%00", "%ff", "x" * 4000, "a%2fb", "..%2f"]:
        reply = await site.client.get(f"/machines/view/{name}")
        assert (reply.status, reply.message) == (404, "Machine not found"), name


async def test_the_figures_of_the_server(site: Site) -> None:
    await site.configure(machine("one"), machine("two"), machine("three"))
    await site.store.machines.set_quarantine("two", "broken")
    await site.store.tasks.submit([URL] * 4)
    [one, *_] = await site.store.machines.list()
    await site.store.tasks.claim(one)
    await site.store.tasks.transition(1, Status.RUNNING, Status.FAILED_ANALYSIS)
    await site.store.tasks.transition(2, Status.PENDING, Status.CANCELLED)
    status = (await site.client.get("/cuckoo/status")).json
    figures = {"cpuload", "memory", "memavail", "diskspace"}
    assert {name: value for name, value in status.items() if name not in figures} == {
        "version": __version__,
        "protocol_version": 1,
        "hostname": socket.gethostname(),
        "machines": {"total": 3, "available": 1},
        "paused": "",
        "tasks": {
            "total": 4,
            "pending": 2,
            "running": 0,
            "completed": 0,
            "reported": 0,
            "recovered": 0,
            "cancelled": 1,
            "failed_analysis": 1,
            "failed_processing": 0,
            "failed_reporting": 0,
        },
        "cpu_count": os.cpu_count(),
        "memtotal": psutil.virtual_memory().total // 1024,
        "processes": {},
    }
    assert set(status["diskspace"]) == {"analyses", "binaries", "temporary"}
    for disk in status["diskspace"].values():
        assert set(disk) == {"total", "free", "used"}
        assert disk["total"] > disk["free"] > 0
    assert len(status["cpuload"]) == 3
    assert 0 < status["memory"] < 100
    assert 0 < status["memavail"] < status["memtotal"]


async def test_without_a_rooter_there_is_no_vpn_to_tell_of(site: Site) -> None:
    reply = await site.client.get("/vpn/status")
    assert (reply.status, reply.message) == (500, "Rooter not available")


async def test_exit_is_refused_without_debug(site: Site) -> None:
    stopped: list[bool] = []
    site.app[SWITCH].stop = lambda: stopped.append(True)
    reply = await site.client.get("/exit")
    assert (reply.status, reply.message) == (403, "This call can only be used in debug mode")
    assert stopped == []


async def test_exit_stops_a_server_in_debug_mode(new_site: NewSite) -> None:
    site = await new_site(debug=True)
    stopped: list[bool] = []
    site.app[SWITCH].stop = lambda: stopped.append(True)
    assert (await site.client.ask("HEAD", "/exit")).status == 405
    assert stopped == []
    assert (await site.client.get("/exit")).json == {"message": "Server stopped"}
    assert stopped == [True]


async def test_exit_under_another_program_is_that_one_s_matter(new_site: NewSite) -> None:
    site = await new_site(debug=True)
    reply = await site.client.get("/exit")
    assert reply.status == 500
    assert "owns this process" in reply.message


async def test_a_server_that_stops_tells_its_clients_to_come_again_elsewhere(site: Site) -> None:
    assert "Connection" not in (await site.client.get("/healthz")).headers
    site.app[SWITCH].draining = True
    assert (await site.client.get("/healthz")).headers["Connection"] == "close"


async def test_health(site: Site) -> None:
    assert (await site.client.get("/healthz")).json == {"status": "ok"}


async def test_readiness_says_what_is_wrong(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = await site.client.get("/readyz")
    assert (ready.status, ready.json) == (200, {"message": "ready", "problems": []})
    await site.configure(machine("one"), machine("two"))
    await site.store.machines.set_quarantine("one", "it never came up")
    assert (await site.client.get("/readyz")).status == 200  # two is left
    await site.store.machines.set_status("two-label", "fake", "unreachable")
    problems = ["machine one: it never came up", "machine two: unreachable"]
    reply = await site.client.get("/readyz")
    assert (reply.status, reply.json["problems"]) == (503, problems)
    assert reply.json["message"] == "; ".join(problems)
    monkeypatch.setattr(room, "free_bytes", lambda _: 5 << 20)
    [disk, *_] = (await site.client.get("/readyz")).json["problems"]
    assert disk.startswith("disk: 5 MiB free under ")
    assert disk.endswith("[cuckoo] freespace asks for 1024")
    assert (await site.client.get("/cuckoo/status")).json["paused"] == disk
    metrics = (await site.client.get("/metrics")).body.decode()
    assert "\ncuckoo_analyses_paused 1.0\n" in metrics
