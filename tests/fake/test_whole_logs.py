"""What the server logs of an analysis: whose it is, for clients too, and never a secret."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from fakekit import TOKEN, Site

from cuckoo_api.machinery import MachineryError, Secret
from cuckoo_api.server.logs import configure_logs
from cuckoo_api.settings import MachinerySettings
from cuckoo_api.settings.tokens import add_token
from cuckoo_api.testing.fake import Failing, scripts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_logging_is_put_back")]

PASSWORD = "hunter-of-hypervisors"
SECRETS = {
    "webhooks": {"secret": "signs-what-is-sent"},
    "virustotal": {"key": "key-of-virustotal"},
    "archives": {"passwords": ("opens-archives",)},
}


@pytest.fixture
def log() -> io.StringIO:
    """What the server writes to standard error, with ``--debug``."""
    stream = io.StringIO()
    configure_logs(debug=True, stream=stream)
    return stream


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def told(site: Site, task_id: int) -> str:
    return (site.folder(task_id) / "cuckoo.log").read_text()


async def test_every_line_of_an_analysis_has_its_task_and_the_submission_its_request(
    site: Site, log: io.StringIO
) -> None:
    site.add("one")
    site.add("two")
    await site.start()
    first = await site.submit()
    second = await site.submit()
    for task_id in (first, second):
        await site.until(task_id, "reported")
    await site.free()
    found = lines(log)

    for task_id in (first, second):
        events = [line["event"] for line in found if line.get("task_id") == task_id]
        assert events == [
            "machine.leased", "analysis.begins", "analysis.started", "analysis.ended",
            "machine.released", "report.made",
        ]  # fmt: skip
    [submitted] = [line for line in found if line.get("task_ids") == [first]]
    [request] = [
        line for line in found
        if line["event"] == "request" and line["request_id"] == submitted["request_id"]
    ]  # fmt: skip
    assert (request["path"], request["method"]) == ("/tasks/create/file", "POST")


async def test_a_tasks_own_log_is_in_its_folder_and_in_its_report(
    site: Site, log: io.StringIO
) -> None:
    site.add("one")
    await site.start()
    task_id = (await site.analyse())["id"]
    own = told(site, task_id)
    assert [line.split()[2] for line in own.splitlines()] == [
        "analysis.begins", "analysis.started", "analysis.ended", "machine.released", "report.made",
    ]  # fmt: skip
    report = await site.get(f"/tasks/report/{task_id}")
    assert report["debug"]["cuckoo"] == own.splitlines()[:-1]

    await site.get(f"/tasks/rereport/{task_id}")
    await site.until(task_id, "reported")
    assert told(site, task_id).startswith(own)
    assert told(site, task_id).count("report.made") == 2
    await site.free()


async def test_the_log_of_another_try_is_of_that_try_and_of_a_bug_only_the_name(
    site: Site, log: io.StringIO
) -> None:
    site.add("one")
    site.add("two")
    site.world.behave("restore_and_start", Failing(MachineryError("no such snapshot")), label="one")
    await site.start()
    task = await site.analyse()
    assert task["errors"]
    own = told(site, task["id"])
    assert own.count("analysis.begins") == 1
    assert "Traceback" not in own
    failed = [line for line in lines(log) if line["event"] == "analysis.failed"]
    assert [line["task_id"] for line in failed] == [task["id"]]
    await site.free()


async def test_no_log_holds_a_secret(
    site: Site, log: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    (site.settings.cwd / "conf").mkdir()
    named = add_token(site.settings.cwd, "soc")
    for section, values in SECRETS.items():
        site.configure(section, **values)
    site.add("one", scripts.normal)
    site.add("two")
    fake = site.settings.machinery["fake"]
    options = {"pwd": Secret(PASSWORD)}
    site.settings = replace(
        site.settings,
        machinery={"fake": MachinerySettings(name="fake", options=options, machines=fake.machines)},
    )
    refusal = MachineryError(f"login failed: root:{PASSWORD}@hypervisor")
    site.world.behave("restore_and_start", Failing(refusal), label="one")
    await site.start()
    task = await site.analyse()
    await site.get(f"/tasks/list?token={named}", status=200)
    for path in ("/cuckoo/status", "/machines/list", "/nowhere"):
        await site.get(path, status=404 if path == "/nowhere" else 200)
    await site.free()
    await site.stop()

    kept = "".join(p.read_text("utf-8", "replace") for p in site.settings.cwd.rglob("*.log"))
    seen = "".join([log.getvalue(), kept, json.dumps(task), *capfd.readouterr()])
    assert "login failed: root:***@hypervisor" in seen
    values = [v for section in SECRETS.values() for v in section.values()]
    for secret in (f"Bearer {TOKEN}", named, PASSWORD, "opens-archives", *map(str, values)):
        assert secret not in seen, secret
