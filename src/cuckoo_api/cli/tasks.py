"""``cuckoo list``, ``view``, ``report``, ``cancel``, ``delete``, ``reschedule``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

from rich.table import Table

from cuckoo_api.cli.common import Client, ServerError, connect, console, text
from cuckoo_api.cli.submit import show_result
from cuckoo_api.cli.terminal import plain
from cuckoo_api.model.errors import BadInput
from cuckoo_api.store import TaskFilter

COLUMNS = ("id", "status", "category", "target", "machine", "owner", "added_on", "completed_on")
STYLES = {
    "pending": "cyan",
    "running": "yellow",
    "completed": "yellow",
    "reported": "green",
    "failed_analysis": "red",
    "failed_processing": "red",
    "failed_reporting": "red",
}


async def list_tasks(arguments: argparse.Namespace, cwd: Path) -> int:
    """A table of the tasks that the options let through."""
    query = {
        name: value
        for name in TaskFilter.__struct_fields__
        if (value := getattr(arguments, name)) not in (None, "")
    }
    path = "/tasks/list"
    if arguments.offset is not None and arguments.limit is None:
        raise BadInput("--offset needs --limit")
    if arguments.limit is not None:
        path += f"/{arguments.limit}/{arguments.offset or 0}"
    async with connect(cwd, arguments.url, arguments.token) as client:
        tasks = (await client.get(f"{path}?{urlencode(query)}" if query else path))["tasks"]
    if arguments.json:
        print(json.dumps(tasks))
        return 0
    table = Table("id", "status", "category", "target", "machine", "owner", "added", "completed")
    table.columns[3].overflow = "fold"
    for task in tasks:
        style = STYLES.get(task["status"], "")
        table.add_row(*(text(task[key], style if key == "status" else "") for key in COLUMNS))
    console.print(table if tasks else "There is no such task.")
    return 0


async def view(arguments: argparse.Namespace, cwd: Path) -> int:
    """What is known of a task."""
    async with connect(cwd, arguments.url, arguments.token) as client:
        task = (await client.get(f"/tasks/view/{arguments.id}"))["task"]
    if arguments.json:
        print(json.dumps(task))
        return 0
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in _lines(task):
        grid.add_row(name, text(value, STYLES.get(value, "") if name == "status" else ""))
    console.print(grid)
    return 0


def _lines(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that say something, in their order; those of objects below their names."""
    for name, value in task.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                if inner not in (None, ""):
                    yield f"{name}.{key}", str(inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                yield "" if number else name, str(inner)
        elif value not in (None, ""):
            yield name, str(value)


async def report(arguments: argparse.Namespace, cwd: Path) -> int:
    """The gist; or bytes as the server has them; or JSON."""
    wanted = arguments.format or ("json" if arguments.output else None)
    async with connect(cwd, arguments.url, arguments.token) as client:
        if arguments.element is not None:
            query = urlencode({"elements": arguments.element})
            await _fetch(client, f"/tasks/report/{arguments.id}/json?{query}", arguments.output)
        elif wanted is not None:
            query = f"?tar={arguments.tar}" if arguments.tar else ""
            path = f"/tasks/report/{arguments.id}/{wanted}{query}"
            await _fetch(client, path, arguments.output, is_json=wanted == "json")
        else:
            task = (await client.get(f"/tasks/view/{arguments.id}"))["task"]
            await show_result(client, task, as_json=arguments.json)
            return 0 if task["status"] == "reported" else 1
    return 0


async def _fetch(client: Client, path: str, output: str | None, *, is_json: bool = True) -> None:
    """To a file as it is. On a terminal only JSON, which is made anew: it then obeys nothing."""
    if output is None and is_json:
        print(json.dumps(await client.get(path)))
        return
    if output is None and sys.stdout.isatty():
        raise BadInput("this would harm the terminal; give --output FILE, or pipe it elsewhere")
    with _target(output) as file:
        async for data in client.download(path):
            file.write(data)


@contextmanager
def _target(output: str | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that is there under its name only once it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as exc:
        raise BadInput(f"{output}: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)


async def cancel(arguments: argparse.Namespace, cwd: Path) -> int:
    """Cancel each."""
    return await _each(arguments, cwd, "POST", "/tasks/cancel/{id}", "cancelled")


async def delete(arguments: argparse.Namespace, cwd: Path) -> int:
    """Delete each."""
    return await _each(arguments, cwd, "GET", "/tasks/delete/{id}", "deleted")


async def reschedule(arguments: argparse.Namespace, cwd: Path) -> int:
    """Submit each once more."""
    path = "/tasks/reschedule/{id}"
    if arguments.priority is not None:
        path += f"/{arguments.priority}"
    return await _each(arguments, cwd, "GET", path, "rescheduled")


async def _each(arguments: argparse.Namespace, cwd: Path, method: str, path: str, done: str) -> int:
    """Ask for each task; one that the server refuses does not keep the others from it."""
    answers = [a async for a in _answers(arguments, cwd, method, path)]
    if arguments.json:
        print(json.dumps(answers))
    for answer in answers:
        if "error" in answer:
            print(f"cuckoo: task {answer['id']}: {plain(answer['error'])}", file=sys.stderr)
        elif not arguments.json:
            new = f" as task {answer['task_id']}" if "task_id" in answer else ""
            console.print(text(f"Task {answer['id']} is {done}{new}."))
    return 1 if any("error" in answer for answer in answers) else 0


async def _answers(
    arguments: argparse.Namespace, cwd: Path, method: str, path: str
) -> AsyncIterator[dict[str, Any]]:
    async with connect(cwd, arguments.url, arguments.token) as client:
        for task_id in arguments.ids:
            try:
                answer = await client.ask(method, path.format(id=task_id))
            except ServerError as exc:
                yield {"id": task_id, "error": str(exc)}
            else:
                yield {"id": task_id, **answer}


COMMANDS: dict[str, Callable[[argparse.Namespace, Path], Coroutine[Any, Any, int]]] = {
    "list": list_tasks,
    "view": view,
    "report": report,
    "cancel": cancel,
    "delete": delete,
    "reschedule": reschedule,
}
