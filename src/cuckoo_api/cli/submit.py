"""``cuckoo submit``: a client of the running server."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from cuckoo_api.cli.common import Client, connect, console, text
from cuckoo_api.cli.summary import print_summary
from cuckoo_api.cli.terminal import plain
from cuckoo_api.model.errors import BadInput, CuckooError

FIELDS = (
    "package",
    "timeout",
    "priority",
    "options",
    "machine",
    "platform",
    "tags",
    "custom",
    "owner",
    "clock",
    "callback",
)
FLAGS = ("memory", "enforce_timeout", "unique")
CHUNK = 256 << 10
INTERVAL = 0.5
"""Seconds between two looks at a task where the server tells no events."""

STEPS = {
    "pending": "waiting for a free machine",
    "running": "running in the virtual machine",
    "completed": "making the report",
}


async def submit(arguments: argparse.Namespace, cwd: Path) -> int:
    """Submit every target; with ``--wait`` follow them to their reports."""
    fields = {name: value for name in FIELDS if (value := getattr(arguments, name)) is not None}
    fields |= {name: "yes" for name in FLAGS if getattr(arguments, name)}
    if arguments.route is not None:
        given = [fields["options"]] if "options" in fields else []
        fields["options"] = ",".join([*given, f"route={arguments.route}"])
    async with connect(cwd, arguments.url, arguments.token) as client:
        ids = [await submit_one(client, target, fields) for target in arguments.targets]
        if not arguments.wait:
            if arguments.json:
                print(json.dumps({"task_ids": ids}))
                return 0
            for target, task_id in zip(arguments.targets, ids, strict=True):
                console.print(text(f"{target}: task {task_id}"))
            return 0
        failed = 0
        for task_id in ids:
            task = await follow(client, task_id, quiet=arguments.json)
            failed += task["status"] != "reported"
            await show_result(client, task, as_json=arguments.json)
        return 1 if failed else 0


async def submit_one(client: Client, target: str, fields: dict[str, str]) -> int:
    """One file or URL; the task's id."""
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, value)
    path = Path(target)
    if path.is_file():
        with _upload_bar() as progress:
            form.add_field(
                "file", _read(path, progress), filename=path.name,
                content_type="application/octet-stream",
            )  # fmt: skip
            answer = await client.post("/tasks/create/file", form)
    elif "://" in target:
        form.add_field("url", target)
        answer = await client.post("/tasks/create/url", form)
    else:
        raise BadInput(f"{target}: neither a file nor a URL; a URL begins with http://")
    return int(answer["task_id"])


def _upload_bar() -> Progress:
    return Progress(
        TextColumn("Uploading {task.description}"), BarColumn(), DownloadColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


async def _read(path: Path, progress: Progress) -> AsyncIterator[bytes]:
    bar = progress.add_task(escape(plain(path.name)), total=path.stat().st_size)
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK):
            yield data
            progress.advance(bar, len(data))


async def follow(client: Client, task_id: int, *, quiet: bool = False) -> dict[str, Any]:
    """Tell what is happening until the task has come to an end; the task then."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.elapsed:.0f} s"),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    ) as progress:  # fmt: skip
        line = progress.add_task(f"Task {task_id}")
        async with aclosing(_moments(client, task_id)) as moments:
            async for _ in moments:
                task: dict[str, Any] = (await client.get(f"/tasks/view/{task_id}"))["task"]
                step = STEPS.get(task["status"])
                if step is None:
                    break
                progress.update(line, description=f"Task {task_id}: {step}")
    return task


async def _moments(client: Client, task_id: int) -> AsyncGenerator[None]:
    """When to look at the task: now, and whenever it may have changed."""
    try:
        async with aclosing(client.changes(task_id)) as changes:
            async for _ in changes:
                yield
    except CuckooError:
        pass  # the look says better what is wrong, if anything is
    while True:
        yield
        await asyncio.sleep(INTERVAL)


async def show_result(client: Client, task: dict[str, Any], *, as_json: bool) -> None:
    """The summary of a reported task, or why there is none."""
    if task["status"] != "reported":
        if as_json:
            print(json.dumps(task))
            return
        console.print(text(f"Task {task['id']}: {task['status']}", "red"))
        for error in task["errors"]:
            console.print(text(f"  {error}"))
        return
    report = await client.get(f"/tasks/report/{task['id']}")
    if as_json:
        print(json.dumps(report))
        return
    print_summary(console, report)
    console.print(f"\nAll of it: {client.url}/tasks/report/{task['id']}", highlight=False)
