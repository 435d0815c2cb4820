"""A server in a process of its own that is killed, as by ``kill -9``, at a chosen step."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
from fakekit import Site, report_here

from cuckoo_api.reporting import service as reporting
from cuckoo_api.store.connection import Database
from cuckoo_api.testing.fake import FakeHypervisor, GuestRun
from waiting import PATIENCE, News

IN_THE_GUEST = -1
"""The step at which the sample runs."""

_CONTEXT = multiprocessing.get_context("forkserver")
# imported once, not for each life
_CONTEXT.set_forkserver_preload(["cuckoo_api.server.app", "cuckoo_api.testing.fake"])


def one_life(cwd: Path, step: int) -> list[int]:
    """Start a server, submit a file, and kill it; the ids of the tasks that it had answered.

    A step is whatever lasts: a write that was committed, an order to the hypervisor.
    """
    with tempfile.TemporaryDirectory(prefix="fake-") as temporary:  # it cannot clear up itself
        return _one_life(cwd, step, temporary)


def _one_life(cwd: Path, step: int, temporary: str) -> list[int]:
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_live, args=(cwd, step, temporary, theirs))
    process.start()
    theirs.close()
    answered: list[int] = []
    try:
        while True:
            answered.append(ours.recv())
    except EOFError:
        pass
    finally:
        ours.close()
        process.join()
    assert process.exitcode == -signal.SIGKILL, f"it outlived step {step}"
    process.close()
    return answered


def _live(cwd: Path, step: int, temporary: str, pipe: Connection) -> None:
    tempfile.tempdir = temporary
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            _die()

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    _after_each(Database, "write", count)
    _after_each(FakeHypervisor, "perform", count)
    reporting._run = report_here
    asyncio.run(_serve(cwd, pipe, in_the_guest=step == IN_THE_GUEST))


async def _serve(cwd: Path, pipe: Connection, *, in_the_guest: bool) -> None:
    async with asyncio.timeout(PATIENCE), FakeHypervisor() as world:
        site = Site(cwd, world, News())
        site.add("one")
        if in_the_guest:
            site.guest("one").script = _fatal
        await site.start()
        pipe.send(await site.submit())
        await asyncio.Event().wait()


async def _fatal(_run: GuestRun) -> None:
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after_each(owner: type, name: str, count: Any) -> None:
    method = getattr(owner, name)

    async def counted(*arguments: Any) -> Any:
        result = await method(*arguments)
        count()
        return result

    setattr(owner, name, counted)
