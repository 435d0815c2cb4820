"""``cuckoo demo``: from nothing to a report, through a real virtual machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from cuckoo_api.cli import guest
from cuckoo_api.cli.common import Client, connect, console
from cuckoo_api.cli.submit import follow, show_result, submit_one
from cuckoo_api.fleet import load_plugins
from cuckoo_api.model.errors import BadInput, Unavailable
from cuckoo_api.settings import find_cwd, init_cwd
from cuckoo_api.settings.init import with_value

START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
_LISTENING = re.compile(rb"https?://[^\s\x1b'\"]+:\d+")


async def demo(arguments: argparse.Namespace, cwd: Path | None) -> int:
    """Set up what is missing, run one sample, show its summary, stop."""
    sample = Path(arguments.sample) if arguments.sample else None
    if sample is not None and not sample.is_file():
        raise BadInput(f"{sample}: there is no such file")
    cwd = cwd or find_cwd(None).with_name(".cuckoo-demo")
    prepare(cwd)
    await guest.build(argparse.Namespace(machines=1, force=False), cwd)
    with _sample(sample) as path:
        async with _server(cwd) as url, connect(cwd, url, None) as client:
            console.print(f"The server runs at {url}; submitting {path.name}.", highlight=False)
            task = await _analyse(client, path, arguments.timeout)
            await show_result(client, task, as_json=False)
    page = cwd / "storage" / "analyses" / str(task["id"]) / "reports" / "report.html"
    if page.exists():
        console.print(f"As a page: {page}", highlight=False, soft_wrap=True)
    console.print(
        f"Stopped. Everything is kept under {cwd}; to look around: "
        f"cuckoo --cwd {cwd} api",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0 if task["status"] == "reported" else 1


def prepare(cwd: Path) -> None:
    """A working directory whose guests find a sinkhole: samples then show what they want."""
    written = {path.name for path in init_cwd(cwd, list(load_plugins().values()))}
    if "routing.conf" in written:
        path = cwd / "conf" / "routing.conf"
        path.write_text(with_value(path.read_text(), "routing", "route", "sinkhole"))


@contextlib.contextmanager
def _sample(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    packaged = resources.files("cuckoo_api.guest") / "payload" / "demo" / "demo-sample.sh"
    with resources.as_file(packaged) as path:
        yield path


async def _analyse(client: Client, sample: Path, timeout: int) -> dict[str, Any]:
    task_id = await submit_one(
        client, str(sample), {"timeout": str(timeout), "options": "procmemdump=yes"}
    )
    return await follow(client, task_id)


@asynccontextmanager
async def _server(cwd: Path) -> AsyncIterator[str]:
    """A server of our own on a free port; its URL. Its log goes to log/demo.log."""
    log = cwd / "log" / "demo.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd), "api", "-p", "0",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
    try:
        yield await _url_of(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _url_of(process: asyncio.subprocess.Process, log: Path) -> str:
    """What the server prints once it listens."""
    with console.status("Starting the server"), contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT):
            while process.stdout and (line := await process.stdout.readline()):
                if found := _LISTENING.search(line):
                    return found[0].decode()
    tail = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise Unavailable("\n".join(["the server did not start; it said:", *tail]))
