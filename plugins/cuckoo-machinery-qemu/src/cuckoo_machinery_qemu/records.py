"""What is kept of a machine: live snapshots, its screen, its memory, its packets, its console."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from cuckoo_api.machinery import BackendUnavailable
from cuckoo_machinery_qemu.files import SNAPSHOT_TAG, take_over
from cuckoo_machinery_qemu.monitor import CommandFailed, Monitor
from cuckoo_machinery_qemu.process import QemuProcess
from cuckoo_machinery_qemu.spec import CONSOLE_SIZE, STATE_NODE

if TYPE_CHECKING:
    from cuckoo_machinery_qemu.machine import Machine

DELETE_TIMEOUT = 50.0
SAVE_TIMEOUT = 300.0
MAX_SCREEN = 64 << 20
MAX_CAPTURE = 4 << 30


async def take_snapshot(machine: Machine, process: QemuProcess, name: str) -> None:
    """Keep memory and disk under this name. The machine is off afterwards."""
    spec = await asyncio.to_thread(machine.spec)
    files, monitor = machine.files, process.monitor
    files.snapshot(name)
    await monitor.run("stop")
    # of a snapshot that the machine was started from, the new one takes what it needs: it is
    # to stand on the image alone
    await monitor.job(
        "block-stream", SAVE_TIMEOUT,
        device="disk", base_node="layer0", backing_file=str(spec.image), auto_dismiss=False,
    )  # fmt: skip
    # one that the machine was started from is not to be kept beside the new one
    with contextlib.suppress(CommandFailed):
        await monitor.job("snapshot-delete", DELETE_TIMEOUT, tag=SNAPSHOT_TAG, devices=[STATE_NODE])
    await monitor.job(
        "snapshot-save", SAVE_TIMEOUT,
        tag=SNAPSHOT_TAG, vmstate=STATE_NODE, devices=[STATE_NODE],
    )  # fmt: skip
    # 'quit' flushes and closes the images; a kill might not
    process.expect_end()
    await monitor.run("quit")
    await process.gone()
    await asyncio.to_thread(files.keep, name, machine.identity(spec))
    await machine.power_off()


async def screenshot(monitor: Monitor, run: Path, path: Path) -> None:
    """The screen, as PPM. ``run`` is the folder in which QEMU may write."""
    await monitor.run("screendump", filename="screen.ppm", timeout=5)
    await asyncio.to_thread(take_over, run / "screen.ppm", path, limit=MAX_SCREEN)


async def dump_memory(monitor: Monitor, run: Path, path: Path, *, memory: int) -> None:
    """The guest's memory, ``memory`` MiB, as an ELF core."""
    await monitor.dump("memory.dmp", SAVE_TIMEOUT)
    await asyncio.to_thread(take_over, run / "memory.dmp", path, limit=(memory + 256) << 20)


async def console(monitor: Monitor) -> bytes:
    """The last that the guest wrote to its serial console."""
    answer = await monitor.run("ringbuf-read", device="console", size=CONSOLE_SIZE, format="base64")
    return base64.b64decode(answer)


class Capture:
    """The packets of one run: written by QEMU into its folder, then moved to where they belong."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._path: Path | None = None

    async def start(self, monitor: Monitor, path: Path) -> None:
        """Begin to write."""
        name = self._source.name
        await monitor.run(
            "object-add", qom_type="filter-dump", id="capture", netdev="net0", file=name
        )
        self._path = path

    async def stop(self, monitor: Monitor | None) -> None:
        """Finish the file. Without a QEMU, or when it has ended, it is finished already."""
        if self._path is None:
            return
        if monitor is not None:
            with contextlib.suppress(BackendUnavailable):  # it ended: the file is finished
                await monitor.run("object-del", id="capture")
        await self.keep()

    async def keep(self) -> None:
        """Take the file over, if there is one that nobody has taken."""
        path, self._path = self._path, None
        if path is not None and self._source.exists():
            await asyncio.to_thread(take_over, self._source, path, limit=MAX_CAPTURE)
