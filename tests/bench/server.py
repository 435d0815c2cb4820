"""Servers in processes of their own."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import NewTask
from cuckoo_api.settings import init_cwd, load_settings
from cuckoo_api.settings.init import with_value
from cuckoo_api.store import Store

TASKS = 1000


@dataclass(frozen=True, slots=True)
class Server:
    """One that listens."""

    url: str
    pid: int
    token: str = ""


@contextmanager
def real_server(cwd: Path, *, tasks: int = TASKS) -> Iterator[Server]:
    """``cuckoo api`` as a user starts it, but without machines: its tasks go on waiting."""
    init_cwd(cwd, [])
    conf = cwd / "conf" / "cuckoo.conf"
    conf.write_text(with_value(conf.read_text(), "cuckoo", "machinery", ""))
    token = load_settings(cwd, []).cuckoo.api_token
    asyncio.run(fill(cwd / "cuckoo.db", tasks))
    with _process(
        "cuckoo_api", "--cwd", str(cwd), "api", "-p", "0", log=cwd / "log/server"
    ) as made:
        yield Server(*made, token)


@contextmanager
def bare_server(log: Path) -> Iterator[Server]:
    """A server with one handler, which does nothing."""
    with _process("tests.bench.bare", log=log) as made:
        yield Server(*made)


async def fill(database: Path, count: int = TASKS) -> None:
    """Put the tasks into a new database: they ask for machines that nobody has."""
    store = await Store.open(f"sqlite:///{database}")
    await asyncio.gather(*(store.tasks.submit([_task(n)], _sample(n)) for n in range(count)))
    await store.close()


def _task(number: int) -> NewTask:
    return NewTask(
        category="file",
        target="invoice.exe",
        options={"procmemdump": "yes"},
        platform="windows",
        tags=[f"office{number % 20}"],
    )


def _sample(number: int) -> NewSample:
    digest = hashlib.sha512(str(number).encode()).hexdigest()
    return NewSample(
        md5=digest[:32],
        sha1=digest[:40],
        sha256=digest[:64],
        sha512=digest,
        crc32="3610A686",
        ssdeep="3:iKn:hn",
        file_size=64 << 10,
        file_type="PE32 executable (GUI) Intel 80386, for MS Windows",
    )


@contextmanager
def _process(*words: str, log: Path) -> Iterator[tuple[str, int]]:
    """Run a module that prints its URL once it listens; its URL and pid."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "listens on" in line, log.read_text()[-2000:]
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
    assert process.returncode in (0, -signal.SIGTERM), log.read_text()[-2000:]
