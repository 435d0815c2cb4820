"""The examples of Cuckoo 2's own documentation, word for word but for the address and the file."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fakekit import SAMPLE, TOKEN, Site

AUTH = f"-H 'Authorization: Bearer {TOKEN}'"


class Shell:
    """Runs the examples in a folder that has the files which they name."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._site = site
        self._folder = folder

    async def run(self, line: str) -> bytes:
        """A command's output; it must end well."""
        line = line.replace("http://localhost:8090", self._site.url)
        line = line.replace("-H 'Authorization: Bearer S4MPL3'", AUTH)
        process = await asyncio.create_subprocess_exec(
            *shlex.split(line),
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors
        return output

    async def json(self, line: str) -> Any:
        """What a command prints, as JSON."""
        return json.loads(await self.run(line))

    async def get(self, path: str) -> bytes:
        """``curl http://localhost:8090/…`` as most examples have it."""
        return await self.run(
            f"curl -s -H 'Authorization: Bearer S4MPL3' http://localhost:8090{path}"
        )

    async def ask(self, path: str) -> Any:
        """The same, as JSON."""
        return json.loads(await self.get(path))


@pytest.fixture
async def shell(site: Site, tmp_path: Path) -> Shell:
    site.add("cuckoo1")
    site.configure("cuckoo", memory_dump=True)
    await site.start()
    folder = tmp_path / "curl"
    folder.mkdir()
    for name in ("file", "1.exe", "2.exe"):
        (folder / name).write_bytes(SAMPLE)
    return Shell(site, folder)


async def test_submissions(site: Site, shell: Shell) -> None:
    submit = "curl -s -H 'Authorization: Bearer S4MPL3'"
    made = await shell.json(f"{submit} -F file=@file http://localhost:8090/tasks/create/file")
    assert made == {"task_id": 1}
    made = await shell.json(
        f'{submit} -F url="http://www.malicious.site" http://localhost:8090/tasks/create/url'
    )
    assert made == {"task_id": 2}
    made = await shell.json(
        f"{submit} http://localhost:8090/tasks/create/submit -F files=@1.exe -F files=@2.exe"
    )
    assert (made["submit_id"], len(made["task_ids"]), made["errors"]) == (1, 2, [])
    made = await shell.json(
        f'{submit} http://localhost:8090/tasks/create/submit -F strings="google.com\nfacebook.com"'
    )
    assert len(made["task_ids"]) == 2
    for task_id in range(1, 7):
        await site.until(task_id, "reported")


async def test_tasks_and_results(site: Site, shell: Shell) -> None:
    task = await site.analyse()
    assert len((await shell.ask("/tasks/list"))["tasks"]) == 1
    assert (await shell.ask("/tasks/list/10"))["tasks"][0]["id"] == 1
    assert (await shell.ask("/tasks/sample/1"))["tasks"][0]["id"] == 1
    assert (await shell.ask("/tasks/view/1"))["task"] == task
    assert (await shell.ask("/tasks/report/1"))["info"]["id"] == 1
    assert "debug" not in await shell.ask("/tasks/summary/1")
    assert zipfile.is_zipfile(io.BytesIO(await shell.get("/tasks/screenshots/1")))
    with tarfile.open(fileobj=io.BytesIO(await shell.get("/tasks/report/1/all"))) as archive:
        assert "reports/report.json" in archive.getnames()
    assert await shell.get("/memory/full/1")
    assert (await shell.ask("/memory/list/1")) == {"message": "Memory dump not found"}
    assert (await shell.ask("/files/view/id/1"))["sample"]["id"] == 1
    assert await shell.get(f"/files/get/{task['sample']['sha256']}") == SAMPLE
    assert (await shell.get("/pcap/get/1"))[:4] == b"\xd4\xc3\xb2\xa1"


async def test_again_and_away(site: Site, shell: Shell) -> None:
    await site.analyse()
    assert await shell.ask("/tasks/rereport/1") == {"success": True}
    await site.until(1, "reported")
    assert await shell.ask("/tasks/reboot/1") == {"task_id": 1, "reboot_id": 2}
    assert await shell.ask("/tasks/reschedule/1") == {"status": "OK", "task_id": 3}
    for task_id in (2, 3):
        await site.until(task_id, "reported")
    assert await shell.ask("/tasks/delete/1") == {"status": "OK"}
    assert await shell.ask("/tasks/view/1") == {"message": "Task not found"}


async def test_the_server(shell: Shell) -> None:
    [machine] = (await shell.ask("/machines/list"))["machines"]
    assert (await shell.ask("/machines/view/cuckoo1"))["machine"] == machine
    assert (await shell.ask("/cuckoo/status"))["protocol_version"] == 1
    assert await shell.ask("/vpn/status") == {"message": "Rooter not available"}
    assert await shell.ask("/exit") == {"message": "This call can only be used in debug mode"}
