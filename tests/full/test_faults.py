"""What goes wrong, with real machines: nothing is lost, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import aiohttp
import pytest
from serverkit import DONE, NewSite, Site, run

SHORT = b"#!/bin/sh\necho one > /tmp/one\nsleep 1\n"
LONG = b"#!/bin/sh\necho begun > /tmp/begun\nsleep 300\n"
KILLS = 20


async def test_kill_9_of_the_server_at_20_random_instants(new_site: NewSite) -> None:
    site = await new_site()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    instants = random.Random(seed)
    tasks: list[int] = []
    for _ in range(KILLS):
        await site.start()
        states = [(await site.task(task_id))["status"] for task_id in tasks]
        assert set(states) <= {"pending", "running", "completed", "reported"}, states
        if not tasks or states[-1] == "reported":
            tasks.append(await site.submit(SHORT, "short.sh", timeout=20))
        # from the lease to the report it takes some five seconds
        await asyncio.sleep(instants.uniform(0, 5))
        await site.kill()
        await site.namespace.empty()
        await site.namespace.without("ck")  # the machines' taps
    await site.start()
    for task_id in tasks:
        assert (await site.until(task_id, *DONE))["status"] == "reported"
        report = await site.get(f"/tasks/report/{task_id}")
        assert [d["filepath"] for d in report["dropped"]] == ["/tmp/one"]
    await site.assert_nothing_held()
    await site.stop()
    await site.assert_nothing_left()


async def test_a_qemu_that_is_killed_costs_the_machine_not_the_task(site: Site) -> None:
    task_id = await site.submit(LONG, "long.sh", timeout=8)
    await site.running(task_id)
    [qemu] = site.namespace.pids_of("qemu-system")
    os.kill(qemu, signal.SIGKILL)
    task = await site.until(task_id, *DONE)
    assert task["status"] == "reported"
    assert task["guest"]["name"] == "cuckoo2"
    machines = {m["name"]: m for m in (await site.get("/machines/list"))["machines"]}
    assert "QEMU ended with signal 9" in machines["cuckoo1"]["quarantine"]
    assert machines["cuckoo2"]["quarantine"] is None
    await site.assert_nothing_held()


async def test_a_guest_that_never_answers_is_put_aside(new_site: NewSite) -> None:
    site = await new_site(**{"timeouts.agent": "5"})
    conf = site.cwd / "conf" / "qemu.conf"
    text = conf.read_text()
    # a machine that boots and has no agent comes first in line
    section = text[text.index("\n[cuckoo1]\n") : text.index("\n[cuckoo2]\n")]
    mute = section.replace("cuckoo1", "mute").replace(".11\n", ".99\n")
    mute = mute.replace("snapshot = clean", "snapshot =").replace("quiet", "init=/nowhere quiet")
    conf.write_text(text.replace("machines = cuckoo1,", "machines = mute, cuckoo1,") + mute)
    await site.start()
    task_id = await site.submit(SHORT, "short.sh", timeout=20)
    task = await site.until(task_id, *DONE)
    assert task["status"] == "reported"
    assert task["guest"]["name"] in ("cuckoo1", "cuckoo2")
    mute_now = (await site.get("/machines/view/mute"))["machine"]
    assert "did not answer within 5 s" in mute_now["quarantine"]
    assert any("did not answer within 5 s" in error for error in task["errors"])
    await site.assert_nothing_held()


async def test_a_sample_that_runs_for_ever_is_stopped_and_reported(site: Site) -> None:
    report = await site.analyse(LONG, "long.sh", timeout=4)
    assert [d["filepath"] for d in report["dropped"]] == ["/tmp/begun"]
    assert any("timeout hit" in line for line in report["debug"]["log"])
    await site.assert_nothing_held()


async def test_a_sample_that_kills_the_agent_is_reported(new_site: NewSite) -> None:
    site = await new_site(**{"timeouts.critical": "15"})
    await site.start()
    killer = b"""#!/bin/sh
echo first > /tmp/first
for stat in /proc/[0-9]*/stat; do
    read -r pid name rest < "$stat"
    case $name in *python*) kill -9 "$pid" ;; esac
done
sleep 60
"""
    report = await site.analyse(killer, "killer.sh", timeout=5)
    # the trace was sent while the sample ran, so that it is known what it did
    assert any("killer.sh" in p["command_line"] for p in report["behavior"]["processes"])
    assert report["debug"]["errors"]
    await site.assert_nothing_held()


@pytest.mark.parametrize(
    ("name", "eat", "options"),
    [
        ("fork bomb", b"b() { b | b & b; }; b", "procmemdump=yes"),
        ("full disk", b"cat /dev/zero > /root/fill", ""),
    ],
)
async def test_a_sample_that_eats_the_guest_is_reported(
    site: Site, name: str, eat: bytes, options: str
) -> None:
    script = b"#!/bin/sh\necho lit > /tmp/mark\n" + eat + b"\n"
    report = await site.analyse(script, f"{name}.sh", timeout=6, options=options)
    # of many of one program, some
    assert 0 < len(report["procmemory"]) <= 100 if options else report["procmemory"] == []
    assert any(d["filepath"] == "/tmp/mark" for d in report["dropped"])
    assert not any("could not be killed" in line for line in report["debug"]["log"])
    await site.assert_nothing_held()


async def test_a_sample_that_floods_the_result_server_is_cut_off(new_site: NewSite) -> None:
    limit = 8 << 20
    site = await new_site(
        **{
            "resultserver.max_total_size": str(limit),
            "resultserver.max_files": "100",
            "resultserver.max_connections": "16",
        }
    )
    await site.start()
    flood = b"""#!/usr/bin/env python3
import socket, threading
HOST = ("192.168.55.1", 2042)
def pour(number):
    count = 0
    while True:
        try:
            s = socket.create_connection(HOST, 5)
            name = "files/%d-%d" % (number, count)
            count += 1
            s.sendall(b"FILE\\n" + name.encode() + b"\\n" + b"x" * (1 << 20))
            s.close()
        except OSError:
            pass
for number in range(40):
    threading.Thread(target=pour, args=(number,), daemon=True).start()
for line in (b"FILE\\n../../escaped\\n", b"FILE\\n/etc/x\\n", b"HELLO\\n", b"LOG" * 4000 + b"\\n"):
    s = socket.create_connection(HOST, 5); s.sendall(line); s.close()
threading.Event().wait(60)
"""
    report = await site.analyse(flood, "flood.py", timeout=8)
    folder = site.folder(report["info"]["id"])
    taken = [path for name in ("files", "logs") for path in (folder / name).iterdir()]
    assert len(taken) <= 100
    assert sum(path.stat().st_size for path in taken) <= limit
    assert report["debug"]["errors"]
    assert not list(site.cwd.rglob("escaped"))
    await site.assert_nothing_held()


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A folder on a file system of 48 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder))
    yield folder
    run("umount", "--lazy", str(folder))


async def test_a_full_disk_loses_nothing_that_was_answered(
    new_site: NewSite, small_disk: Path, tmp_path: Path
) -> None:
    site = await new_site(**{"cuckoo.freespace": "32"})
    shutil.rmtree(site.cwd / "storage")
    (site.cwd / "storage").symlink_to(small_disk)
    await site.start()
    first = await site.submit(SHORT, "short.sh", timeout=20)
    assert (await site.until(first, *DONE))["status"] == "reported"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(30 << 20))
    # what does not fit is refused, and nothing of it stays
    assert site.session is not None
    large = tmp_path / "large"
    large.write_bytes(bytes(20 << 20))
    with large.open("rb") as file:
        form = aiohttp.FormData({"file": file})
        async with site.session.post("/tasks/create/file", data=form) as response:
            answer = await response.json()
    assert response.status == 503
    assert "disk is full" in answer["message"]
    assert len(list((small_disk / "binaries").iterdir())) == 1
    # what fits waits in the queue until there is room
    second = await site.submit(LONG, "long.sh", timeout=4)
    async with site.session.get("/readyz") as response:
        assert response.status == 503
        assert "disk" in (await response.json())["message"]
    assert (await site.task(second))["status"] == "pending"
    filler.unlink()
    assert (await site.until(second, *DONE))["status"] == "reported"
    await site.assert_nothing_held()


async def test_a_second_server_on_the_same_directory_is_refused(site: Site) -> None:
    assert site.process is not None
    command = site.command("api", "-p", "0")
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    [line] = second.stderr.strip().splitlines()[-1:]
    assert "another server is already running" in line
    assert await site.get("/machines/list")


async def test_a_stop_puts_a_running_analysis_back(site: Site) -> None:
    task_id = await site.submit(LONG, "long.sh", timeout=6)
    await site.running(task_id)
    assert await site.stop() == 0
    await site.assert_nothing_left()
    await site.start()
    task = await site.until(task_id, *DONE)
    assert task["status"] == "reported"
    await site.assert_nothing_held()
