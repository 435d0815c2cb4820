"""``cuckoo guest build`` and ``cuckoo guest check``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cuckoo_api.cli.common import complaints, console, settings_of
from cuckoo_api.fleet import load_plugins
from cuckoo_api.fleet.setup import backend_configs
from cuckoo_api.guest import GuestClient, GuestError
from cuckoo_api.guest.build import GuestImage, build_guest
from cuckoo_api.machinery import MachineConfig, MachineryBackend, MachineryError, SnapshotNotFound
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
    with engine_lock(cwd), _steps() as progress:
        image = await _build_image(cwd, progress)
        if configure_machines(settings, image, arguments.machines):
            settings = settings_of(cwd)
        taken = await take_snapshots(settings, progress, force=arguments.force)
    names = [m.name for m in settings.machinery[MACHINERY].machines]
    console.print(f"Ready: {', '.join(names)} ({taken} snapshot(s) taken).")
    return 0


async def check(arguments: argparse.Namespace, cwd: Path) -> int:
    """A table of times, and exit code 1 when a machine fails."""
    settings = settings_of(cwd)
    table = Table("machine", "restored", "agent", "off", "result")
    failed = 0
    known: set[str] = set()
    with engine_lock(cwd):
        async with _backends(settings) as machines:
            for backend, machine in machines:
                known.add(machine.name)
                if arguments.names and machine.name not in arguments.names:
                    continue
                with complaints.status(f"{machine.name}: restoring, reaching, stopping"):
                    times, fault = await _prove(backend, machine, settings)
                failed += bool(fault)
                result = Text(fault, "red") if fault else Text("works", "green")
                table.add_row(machine.name, *times, result)
    if strange := set(arguments.names) - known:
        raise ConfigError(
            [f"no machine {', '.join(strange)}; there is {', '.join(known) or 'none'}"]
        )
    console.print(table)
    return 1 if failed else 0


async def _prove(
    backend: MachineryBackend, machine: MachineConfig, settings: Settings
) -> tuple[list[str], str]:
    times = ["", "", ""]
    begin = time.monotonic()

    def tick() -> str:
        nonlocal begin
        before, begin = begin, time.monotonic()
        return f"{begin - before:.2f} s"

    try:
        await backend.restore_and_start(machine.label, machine.snapshot)
        times[0] = tick()
        await wait_for_agent(backend, machine, settings.timeouts.agent)
        times[1] = tick()
        await backend.power_off(machine.label)
        times[2] = tick()
    except (MachineryError, GuestError) as exc:
        return times, str(exc)
    return times, ""


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
    async with _backends(settings) as machines:
        for backend, machine in machines:
            if backend.config.name != MACHINERY or not machine.snapshot:
                continue
            line = progress.add_task(f"{machine.name}: trying its snapshot", total=None)
            if not force and await _has_snapshot(backend, machine):
                progress.update(
                    line, description=f"{machine.name}: has its snapshot", total=1, completed=1
                )
                continue
            progress.update(line, description=f"{machine.name}: booting")
            try:
                await backend.restore_and_start(machine.label, "")
                await wait_for_agent(backend, machine, settings.timeouts.agent)
                await asyncio.sleep(SETTLE)
                progress.update(line, description=f"{machine.name}: taking the snapshot")
                await backend.take_snapshot(machine.label, machine.snapshot)
            except (MachineryError, GuestError) as exc:
                raise ConfigError([f"{machine.name}: {exc}"]) from exc
            finally:
                await backend.power_off(machine.label)
            progress.update(
                line, description=f"{machine.name}: snapshot taken", total=1, completed=1
            )
            taken += 1
    return taken


async def _has_snapshot(backend: MachineryBackend, machine: MachineConfig) -> bool:
    try:
        await backend.restore_and_start(machine.label, machine.snapshot)
    except SnapshotNotFound:
        return False
    finally:
        await backend.power_off(machine.label)
    return True


async def wait_for_agent(backend: MachineryBackend, machine: MachineConfig, timeout: float) -> None:
    """Until the guest's agent answers; GuestError."""
    async with GuestClient(backend.address(machine.label).agent) as client:
        await client.wait_ready(timeout)


@asynccontextmanager
async def _backends(
    settings: Settings,
) -> AsyncIterator[list[tuple[MachineryBackend, MachineConfig]]]:
    """Every machine with its opened backend; closed at the end."""
    plugins = load_plugins()
    opened: list[MachineryBackend] = []
    try:
        for config in backend_configs(settings, plugins):
            backend = plugins[config.name].backend(config)
            opened.append(backend)
            try:
                await backend.open()
            except MachineryError as exc:
                raise ConfigError([f"{config.name}: {exc}"]) from exc
        yield [(backend, m) for backend in opened for m in backend.config.machines]
    finally:
        for backend in opened:
            await backend.close()


def _steps() -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=console,
    )
