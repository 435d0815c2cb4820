"""``cuckoo submit`` and ``cuckoo machines`` against a server that runs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakekit import PATIENCE, TOKEN, Site
from routekit import LO, rooter

from cuckoo_api.cli import machines, vpn
from cuckoo_api.cli import submit as module
from cuckoo_api.cli.common import ServerError
from cuckoo_api.cli.main import build_parser
from cuckoo_api.machinery import MachineryError
from cuckoo_api.model.errors import BadInput
from cuckoo_api.server import app
from cuckoo_api.testing.fake import Failing, scripts

pytestmark = pytest.mark.slow

COMMANDS = {"submit": module.submit, "machines": machines.show, "vpn": vpn.show}


class Terminal:
    """Types commands and reads what they print."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        self._site = site
        self._capsys = capsys

    async def type(self, *words: str, code: int = 0, token: str = TOKEN) -> str:
        """Standard output; the exit code must be this one."""
        arguments = build_parser().parse_args([*words, "--url", self._site.url, "--token", token])
        self._capsys.readouterr()
        assert await COMMANDS[arguments.command](arguments, self._site.settings.cwd) == code
        return self._capsys.readouterr().out


@pytest.fixture
def terminal(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    monkeypatch.setattr(module, "INTERVAL", 0.02)
    return Terminal(site, capsys)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.sh"
    path.write_bytes(b"#!/bin/sh\n")
    return path


async def test_files_and_urls_become_tasks(site: Site, terminal: Terminal, sample: Path) -> None:
    site.configure("cuckoo", wait_for_machines=True)
    await site.start()
    told = await terminal.type(
        "submit", str(sample), "http://e.example/", "--timeout", "7", "--priority", "2",
        "--tags", "a,b", "--options", "arguments=-v", "--memory", "--owner", "me",
    )  # fmt: skip

    assert "".join(told.split()) == f"{sample}:task1http://e.example/:task2"
    for task_id, target in ((1, "sample.sh"), (2, "http://e.example/")):
        task = await site.task(task_id)
        assert (task["target"], task["timeout"], task["priority"]) == (target, 7, 2)
        assert (task["tags"], task["options"]) == (["a", "b"], {"arguments": "-v"})
        assert (task["memory"], task["owner"], task["enforce_timeout"]) == (True, "me", False)


async def test_a_program_reads_json(site: Site, terminal: Terminal, sample: Path) -> None:
    site.add("one")
    await site.start()
    assert json.loads(await terminal.type("submit", str(sample), "--json")) == {"task_ids": [1]}
    await site.until(1, "reported")
    report = json.loads(await terminal.type("submit", str(sample), "--wait", "--json"))

    assert report["info"]["id"] == 2
    machines = json.loads(await terminal.type("machines", "--json"))
    assert [(m["name"], m["status"], m["locked"]) for m in machines] == [("one", "poweroff", False)]
    await site.free()


async def test_who_waits_is_told_what_it_did(site: Site, terminal: Terminal, sample: Path) -> None:
    site.add("one")
    await site.start()
    told = await terminal.type("submit", str(sample), "--wait")

    assert "Task 1: score " in told
    assert "Processes (2)\n  /tmp/sample (312)\n    sh -c id (313)\n" in told
    assert "/tmp/dropped.txt" in told
    assert f"All of it: {site.url}/tasks/report/1" in told
    await site.free()


async def test_who_waits_hears_of_each_change(
    site: Site, terminal: Terminal, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 2 * PATIENCE)  # it is not waited for
    site.add("one")
    await site.start()
    async with asyncio.timeout(PATIENCE):
        told = await terminal.type("submit", str(sample), "--wait")

    assert "Task 1: score " in told
    await site.free()


async def test_who_waits_at_a_server_without_events_looks_again(
    site: Site, terminal: Terminal, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_STREAMS", 0)
    site.add("one")
    await site.start()

    assert "Task 1: score " in await terminal.type("submit", str(sample), "--wait")
    await site.free()


async def test_a_task_that_failed_is_an_exit_code(
    site: Site, terminal: Terminal, sample: Path
) -> None:
    site.configure("cuckoo", max_attempts=1)
    site.add("one")
    site.world.behave("restore_and_start", Failing(MachineryError("no [bold]snapshot[/]")))
    await site.start()
    told = await terminal.type("submit", str(sample), "--wait", code=1)

    assert told == "Task 1: failed_analysis\n  one: no [bold]snapshot[/]\n"
    await site.free()


async def test_what_is_no_file_and_no_url_is_refused(site: Site, terminal: Terminal) -> None:
    await site.start()
    with pytest.raises(BadInput, match="nonesuch: neither a file nor a URL"):
        await terminal.type("submit", "nonesuch")

    assert (await site.get("/tasks/list"))["tasks"] == []


async def test_the_servers_own_words_are_told(site: Site, terminal: Terminal, sample: Path) -> None:
    await site.start()
    with pytest.raises(ServerError, match="the server refused: priority: expected"):
        await terminal.type("submit", str(sample), "--priority", "high")
    with pytest.raises(ServerError, match="Authorization: Bearer"):
        await terminal.type("machines", token="wrong")


async def test_the_machines_are_shown_as_they_are(
    site: Site, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    site.add("one", scripts.hangs)
    site.add("two", platform="windows")
    site.world.behave("restore_and_start", Failing(MachineryError("no [disk]")), label="two")
    site.configure("cuckoo", wait_for_machines=True)
    await site.start()
    await site.submit(machine="one")
    await site.submit(machine="two")
    await site.running("one")
    await site.until(2, "pending")
    told = await terminal.type("machines")

    one, two = (line.split() for line in told.splitlines() if "fake" in line)
    assert [one[i] for i in (1, 3, 5, 7, 8)] == ["one", "fake", "running", "task", "1"]
    assert [two[i] for i in (1, 3)] == ["two", "fake"]
    assert "two: no [disk]" in told


async def test_where_no_machine_is_the_way_to_one_is_told(site: Site, terminal: Terminal) -> None:
    await site.start()

    assert "'cuckoo guest build' makes one" in await terminal.type("machines")


async def test_vpns_are_shown_with_what_ails_them(site: Site, terminal: Terminal) -> None:
    site.add("one")
    down = replace(LO, name="vpn1", interface="nowhere0")
    async with rooter(site, LO, down):
        await site.start()
        told = " ".join((await terminal.type("vpn")).split())
        shown = json.loads(await terminal.type("vpn", "--json"))
    assert "│ vpn0 │ up │ none │" in told, "nothing but its interface tells"
    assert "down" in told
    assert [(one["name"], one["status"]) for one in shown] == [("vpn0", "up"), ("vpn1", "down")]
    await site.stop()
    site.settings = replace(site.settings, vpns={})
    async with rooter(site):
        await site.start()
        assert "No VPN is set up" in await terminal.type("vpn")


async def test_a_route_is_an_option_of_the_task(
    site: Site, terminal: Terminal, sample: Path
) -> None:
    site.configure("cuckoo", wait_for_machines=True)
    site.configure("routing", drop=True)
    await site.start()
    await terminal.type("submit", str(sample), "--route", "drop", "--options", "arguments=-v")
    assert (await site.task(1))["options"] == {"arguments": "-v", "route": "drop"}
    with pytest.raises(ServerError, match="not offered"):
        await terminal.type("submit", str(sample), "--route", "vpn9")
