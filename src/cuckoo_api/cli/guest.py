"""``cuckoo guest build``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cuckoo_api.cli.common import console, settings_of
from cuckoo_api.cli.machines import HELD, opened, wait_for_agent
from cuckoo_api.fleet.hypervisor import Hypervisor
from cuckoo_api.guest import GuestError
from cuckoo_api.guest.build import GuestImage, build_guest
from cuckoo_api.machinery import MachineConfig, MachineryError, SnapshotNotFound
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import Settings
from cuckoo_api.settings.init import with_value

MACHINERY = "qemu"
SNAPSHOT = "clean"
FIRST_HOST = 11
"""The last part of the first machine's address."""
SETTLE = 2.0
"""Seconds from the agent's first answer to the snapshot: the guest's start-up comes to rest."""
SNAPSHOT_TIMEOUT = 900.0
"""Seconds for a snapshot: gigabytes, to a disk that may be slow."""

SECTION = """
[{name}]
label = {name}
platform = linux
ip = {ip}
snapshot = {snapshot}
image = {image.disk}
kernel = {image.kernel}
initrd = {image.initrd}
append = {image.append}
memory = {image.memory}
"""


async def build(arguments: argparse.Namespace, cwd: Path) -> int:
    """Image, configuration, snapshots; each step is skipped when it was done before."""
    settings = settings_of(cwd)
    with engine_lock(cwd, HELD), _steps() as progress:
        image = await _build_image(cwd, progress)
        if configure_machines(settings, image, arguments.machines):
            settings = settings_of(cwd)
        taken = await take_snapshots(settings, progress, force=arguments.force)
    names = [m.name for m in settings.machinery[MACHINERY].machines]
    console.print(f"Ready: {', '.join(names)} ({taken} snapshot(s) taken).")
    return 0


async def _build_image(cwd: Path, progress: Progress) -> GuestImage:
    line = progress.add_task("Building the guest", total=1.0)

    def show(step: str, part: float | None) -> None:
        progress.update(line, description=f"Building the guest: {step}", completed=part or 0.0)

    image = await build_guest(cwd / "guests" / "linux", show)
    progress.update(line, description="The guest is built", completed=1.0)
    return image


def configure_machines(settings: Settings, image: GuestImage, count: int) -> bool:
    """Add machines for the image to conf/qemu.conf, if it has none yet; whether it changed."""
    path = settings.cwd / "conf" / f"{MACHINERY}.conf"
    configured = settings.machinery.get(MACHINERY)
    if configured is None:
        raise ConfigError([f"[cuckoo] machinery: {MACHINERY} is not among them"])
    if configured.machines:
        return False
    network = ipaddress.ip_network(f"{settings.resultserver.ip}/24", strict=False)
    names = [f"cuckoo{number}" for number in range(1, count + 1)]
    text = with_value(path.read_text(encoding="utf-8"), MACHINERY, "machines", ", ".join(names))
    for number, name in enumerate(names):
        ip = network.network_address + FIRST_HOST + number
        text += SECTION.format(name=name, ip=ip, snapshot=SNAPSHOT, image=image)
    path.write_text(text, encoding="utf-8")
    return True


async def take_snapshots(settings: Settings, progress: Progress, *, force: bool = False) -> int:
    """Boot each machine that lacks its snapshot and take it; how many were taken."""
    taken = 0
    async with opened(settings, [MACHINERY]) as [(hypervisor, fault)]:
        if fault:
            raise ConfigError([fault])
        for machine in hypervisor.config.machines:
            if not machine.snapshot:
                continue
            line = progress.add_task(f"{machine.name}: trying its snapshot", total=None)
            if not force and await _has_snapshot(hypervisor, machine):
                progress.update(
                    line, description=f"{machine.name}: has its snapshot", total=1, completed=1
                )
                continue
            progress.update(line, description=f"{machine.name}: booting")
            try:
                await hypervisor.restore_and_start(machine.label, "")
                await wait_for_agent(hypervisor, machine, settings.timeouts.agent)
                await asyncio.sleep(SETTLE)
                progress.update(line, description=f"{machine.name}: taking the snapshot")
                await hypervisor.order(
                    "take_snapshot", machine.label, machine.snapshot, seconds=SNAPSHOT_TIMEOUT
                )
            except (MachineryError, GuestError) as exc:
                raise ConfigError([f"{machine.name}: {exc}"]) from exc
            finally:
                await hypervisor.ensure_off(machine.label)
            progress.update(
                line, description=f"{machine.name}: snapshot taken", total=1, completed=1
            )
            taken += 1
    return taken


async def _has_snapshot(hypervisor: Hypervisor, machine: MachineConfig) -> bool:
    try:
        await hypervisor.restore_and_start(machine.label, machine.snapshot)
    except SnapshotNotFound:
        return False
    finally:
        await hypervisor.ensure_off(machine.label)
    return True


def _steps() -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=console,
    )
