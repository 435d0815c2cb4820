"""The real image in QEMU: built from Debian's packages, booted, and given the demo sample."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cuckoo_api.guest import GuestClient, GuestError, GuestJob, Outcome, analyzer_zip
from cuckoo_api.guest.analyzer import PAYLOAD
from cuckoo_api.guest.image import GuestImage
from cuckoo_api.model.task import Task
from cuckoo_api.results import ResultServer, ResultSession
from cuckoo_api.settings import ResultServerSection
from cuckoo_api.testing.guestimage import guest_image

BOOT_TIMEOUT = 60
HOST = "10.0.2.2"
"""This host, as QEMU's user network shows it to the guest."""


@dataclass
class Guest:
    """A running guest and its QEMU's monitor."""

    agent: str
    monitor: Path

    async def command(self, line: str) -> None:
        """One line to the monitor; returns when it was carried out."""
        reader, writer = await asyncio.open_unix_connection(self.monitor)
        await reader.readuntil(b"(qemu) ")
        writer.write(line.encode() + b"\n")
        await reader.readuntil(b"\n")
        await reader.readuntil(b"(qemu) ")
        writer.close()
        await writer.wait_closed()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def booted(image: GuestImage, folder: Path) -> AsyncIterator[Guest]:
    overlay = folder / "overlay.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.disk), "-F", "qcow2"]
    process = await asyncio.create_subprocess_exec(*create, str(overlay))
    assert await process.wait() == 0
    guest = Guest(f"127.0.0.1:{free_port()}", folder / "monitor")
    append = f"{image.append} guestip=10.0.2.15/24 guestgw={HOST} guestdns=10.0.2.3"
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-accel", "tcg", "-M", "pc", "-m", str(image.memory)),
        *("-nodefaults", "-display", "none", "-vga", "std", "-serial", f"file:{folder}/serial"),
        *("-monitor", f"unix:{guest.monitor},server,nowait"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append),
        *("-drive", f"file={overlay},if=none,id=disk", "-device", "virtio-blk-pci,drive=disk"),
        *("-netdev", f"user,id=net,hostfwd=tcp:{guest.agent}-:8000"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        yield guest
    finally:
        process.kill()
        await process.wait()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    return guest_image(tmp_path_factory.mktemp("guest") / "image")


@pytest.fixture
async def guest(image: GuestImage, tmp_path: Path) -> AsyncIterator[Guest]:
    async with booted(image, tmp_path) as guest:
        yield guest


@dataclass
class Results:
    """Where the guest's results arrive."""

    session: ResultSession
    folder: Path
    port: int

    @property
    def errors(self) -> list[str]:
        return self.session.errors


@pytest.fixture
async def results(tmp_path: Path) -> AsyncIterator[Results]:
    folder = tmp_path / "analysis"
    for name in ("files", "logs", "shots"):
        (folder / name).mkdir(parents=True)
    server = ResultServer(ResultServerSection())
    await server.open([("127.0.0.1", 0)])
    try:
        async with server.session(1, folder, ip="127.0.0.1") as session:
            yield Results(session, folder, server.ports[0])
    finally:
        await server.close()


async def analyse(
    guest: Guest, results: Results, sample: Path | None, task: Task, timeout: int
) -> Outcome:
    archive = await asyncio.to_thread(
        analyzer_zip, "linux", results.folder, results.folder.parent / "cache"
    )
    job = GuestJob(
        task=task,
        sample=sample,
        analyzer=archive,
        resultserver_ip=HOST,
        resultserver_port=results.port,
        timeout=timeout,
    )
    async with GuestClient(guest.agent) as client:
        info = await client.wait_ready(BOOT_TIMEOUT)
        assert info.analyzer is not None
        assert info.analyzer.digest in archive.name
        await client.start(job)
        return await client.wait(timeout + 60, results.session.log_closed)


def task_of(**changes: object) -> Task:
    fields = {"id": 1, "category": "file", "target": "demo-sample.sh", "added_on": ""}
    return Task(**{**fields, **changes})  # type: ignore[arg-type]  # any field of a task


def contents(results: Results) -> dict[str, bytes]:
    """Base name in the guest to content."""
    files = (results.folder / "files").iterdir()
    return {path.name.partition("_")[2]: path.read_bytes() for path in files}


async def test_demo_sample_after_a_restored_snapshot(guest: Guest, results: Results) -> None:
    async with GuestClient(guest.agent) as client:
        await client.wait_ready(BOOT_TIMEOUT)
    await guest.command("savevm live")
    await guest.command("loadvm live")
    sample = PAYLOAD / "demo/demo-sample.sh"
    task = task_of(clock="2031-05-06 07:08:09")
    outcome = await analyse(guest, results, sample, task, 60)
    assert (outcome.state, outcome.description) == ("complete", "")
    assert results.errors == []
    log = (results.folder / "analysis.log").read_text()
    assert log.startswith("2031-05-06 07:08:")
    assert "The sample ended with code 0." in log
    trace = (results.folder / "logs/trace.strace").read_text()
    assert 'execve("/tmp/demo-sample.sh", ["/tmp/demo-sample.sh"]' in trace.splitlines()[0]
    assert "updates" in trace  # the DNS request
    assert "unlinkat(AT_FDCWD</tmp/work-" in trace
    found = contents(results)
    assert found["demo-temporary.dat"] == b"temporary data\n"  # deleted before the end
    assert b"/usr/local/bin/demo-updater" in found["demo-updater"] + found[".profile"]
    assert found["demo-inventory.txt"].startswith(b"Linux debian 6.")
    # what the sample prints is on the screen
    await guest.command(f"screendump {results.folder}/shots/screen.ppm")
    assert (results.folder / "shots/screen.ppm").read_bytes()[:2] == b"P6"


async def test_an_unprivileged_user_and_an_agent_that_is_killed(
    guest: Guest, results: Results, tmp_path: Path
) -> None:
    sample = tmp_path / "id.sh"
    sample.write_text("#!/bin/sh\nid -un > /tmp/name; echo x > /etc/forbidden\n")
    task = task_of(target="id.sh", options={"user": "user"})
    outcome = await analyse(guest, results, sample, task, 30)
    assert outcome.state == "complete"
    assert contents(results)["name"] == b"user\n"
    assert "Permission denied" in (results.folder / "analysis.log").read_text()
    async with GuestClient(guest.agent) as client:
        await client.mark("running")
        with contextlib.suppress(GuestError):
            await client.execute("kill -9 $(cat /proc/*/stat | grep python3 | cut -d' ' -f1)")
        info = await client.wait_restarted(BOOT_TIMEOUT, "running")
        assert info.version
