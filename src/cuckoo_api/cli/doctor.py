"""``cuckoo doctor``: everything that can be known to be wrong, with what to do about it."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from cuckoo_api.analysis.system import free_bytes
from cuckoo_api.cli import machines
from cuckoo_api.cli.common import console, need_cwd, text
from cuckoo_api.confinement import confinement
from cuckoo_api.fleet import load_plugins
from cuckoo_api.fleet.checks import Seen, faults, look
from cuckoo_api.machinery import MachineryError
from cuckoo_api.model.errors import ConfigError, CuckooError
from cuckoo_api.network.rooter.client import RooterClient, RooterUnavailable
from cuckoo_api.network.vpn import Monitor
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import Settings, database_url, load_settings
from cuckoo_api.store import Store, database_faults, database_path, pending_migration

OK, WARN, FAIL = "OK", "WARN", "FAIL"
STYLES = {OK: "green", WARN: "yellow", FAIL: "red"}
MIN_FILES = 4096
"""Descriptors: half are for clients, the rest for what they and the guests open."""
OLDEST = 1_700_000_000
"""Unix time before which no clock is right."""
_UNSYNCHRONISED = 5  # adjtimex(2): TIME_ERROR
_TIMEX_SIZE = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: str
    about: str
    text: str
    advice: str = ""
    """What to do next."""


async def doctor(arguments: argparse.Namespace, cwd: Path) -> int:
    """Look at everything; exit code 1 where something fails."""
    need_cwd(cwd)
    found = [finding async for finding in _all(cwd, deep=arguments.deep)]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        table = Table("", "about", "found", "what to do")
        for one in found:
            table.add_row(text(one.level, STYLES[one.level]), *map(text, _words(one)))
        console.print(table)
    return 1 if any(finding.level == FAIL for finding in found) else 0


def _words(one: Finding) -> tuple[str, str, str]:
    return one.about, one.text, one.advice


async def _all(cwd: Path, *, deep: bool) -> AsyncIterator[Finding]:
    settings: Settings | None = None
    try:
        settings = load_settings(cwd, list(load_plugins().values()))
    except ConfigError as exc:
        for fault in exc.faults:
            yield Finding(FAIL, "configuration", fault, "mend it; the server does not start")
    else:
        for warning in settings.warnings:
            yield Finding(WARN, "configuration", warning, "correct or remove it")
        if not settings.warnings:
            yield Finding(OK, "configuration", "no fault, no warning")
    for finding in (*_files(cwd), *_host(), *_disk(cwd, settings), *_database(cwd)):
        yield finding
    if settings is None:
        return
    async for finding in _routes(settings):
        yield finding
    try:
        with engine_lock(cwd, "a server or a command works here"):
            for finding in _ports(settings):
                yield finding
            async for finding in _machines(settings, deep=deep):
                yield finding
    except ConfigError as exc:
        yield Finding(OK, "server", exc.faults[0])
        if deep:
            advice = "stop the server, or leave --deep out"
            yield Finding(FAIL, "machines", "--deep reverts machines: not beside a server", advice)
        async for finding in _machines_of_server(settings):
            yield finding


def _files(cwd: Path) -> Iterator[Finding]:
    """Secrets are the owner's alone, and the server may write where it works."""
    before = True
    for path in (cwd / "conf", *sorted((cwd / "conf").glob("*.conf")), cwd / "cuckoo.db"):
        if path.is_symlink() and path.name == "routing.conf":
            continue  # the rooter's file, which holds no secret
        if path.exists() and (mode := path.stat().st_mode & 0o077):
            before = False
            text_ = f"{path} is open to others (mode {mode | 0o700:o})"
            yield Finding(WARN, "permissions", text_, f"chmod go-rwx {path}")
    for path in (cwd, cwd / "storage", cwd / "storage" / "analyses", cwd / "storage" / "binaries"):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            before = False
            yield Finding(FAIL, "permissions", f"{path} cannot be written", "run as its owner")
    if before:
        yield Finding(OK, "permissions", "secrets are private, the folders can be written")


def _disk(cwd: Path, settings: Settings | None) -> Iterator[Finding]:
    storage = cwd / "storage"
    if not storage.is_dir():
        yield Finding(FAIL, "disk", f"{storage} is missing", f"cuckoo --cwd {cwd} init")
        return
    free, wanted = free_bytes(storage), settings.cuckoo.freespace if settings else 0
    level = FAIL if free < wanted else WARN if free < 2 * wanted else OK
    advice = "" if level == OK else "make room: cuckoo clean --older-than 30d"
    shown = f"{free >> 20} MiB free, [cuckoo] freespace asks for {wanted >> 20}"
    yield Finding(level, "disk", shown, advice)
    numbers = os.statvfs(storage)
    if numbers.f_files and numbers.f_favail < numbers.f_files // 20:
        yield Finding(WARN, "disk", f"{numbers.f_favail} files left (inodes)", advice)


def _database(cwd: Path) -> Iterator[Finding]:
    try:
        path = database_path(database_url(cwd))
        if not path.exists():
            yield Finding(OK, "database", "there is none yet; the first start makes it")
            return
        damage = database_faults(path)
        pending = "" if damage else pending_migration(path)
    except CuckooError as exc:
        yield Finding(FAIL, "database", str(exc), "restore a backup: cuckoo restore")
        return
    for fault in damage:
        yield Finding(FAIL, "database", fault, "restore a backup: cuckoo restore")
    if pending:
        yield Finding(WARN, "database", f"goes {pending}", "cuckoo backup, then start the server")
    elif not damage:
        yield Finding(OK, "database", "whole, and of this version")


def _host() -> Iterator[Finding]:
    """The clock and the limits of this process, which are a server's when it is started so."""
    timex = ctypes.create_string_buffer(_TIMEX_SIZE)  # modes = 0: nothing is set
    state = ctypes.CDLL(None).adjtimex(timex)
    if time.time() < OLDEST:
        yield Finding(FAIL, "clock", f"it is {time.ctime()}", "set it; certificates depend on it")
    elif state == _UNSYNCHRONISED:
        yield Finding(WARN, "clock", "it follows no time server", "apt install chrony")
    else:
        yield Finding(OK, "clock", "it follows a time server")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    advice = "" if files >= MIN_FILES else f"ulimit -n {MIN_FILES}, or LimitNOFILE= in the unit"
    level = WARN if advice else OK
    yield Finding(level, "limits", f"{files} open files are allowed", advice)
    for layer in confinement():
        if layer.holds:
            yield Finding(OK, "confinement", f"{layer.name}: {layer.detail}")
        else:
            missing = f"{layer.name}: worker processes go without"
            yield Finding(WARN, "confinement", missing, layer.detail)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        advice = "add the server's user to the group kvm, if there is a /dev/kvm"
        yield Finding(WARN, "kvm", "/dev/kvm cannot be used: guests are emulated, slowly", advice)


def _ports(settings: Settings) -> Iterator[Finding]:
    host, port = settings.api.host, settings.api.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        advice = "stop what has it, or change [api] host and port"
        yield Finding(FAIL, "port", f"{host}:{port}: {exc.strerror or exc}", advice)
    else:
        yield Finding(OK, "port", f"{host}:{port} is free")


async def _routes(settings: Settings) -> AsyncIterator[Finding]:
    """The rooter and the VPNs, where guests need them."""
    network = settings.network
    is_needed = any(network.needs_rooter(route) for route in network.routes)
    if not is_needed and not network.rooter.bridges:
        return
    if _can_change(settings.cwd / "conf" / "routing.conf"):
        text_ = "this account can write conf/routing.conf, and so say what a route is"
        advice = "where that matters: make it a link to a file of root's, for cuckoo rooter --conf"
        yield Finding(WARN, "rooter", text_, advice)
    if not network.rooter.interfaces:
        text_ = "[rooter] interfaces in conf/routing.conf is empty: no guest can have a route"
        yield Finding(FAIL, "rooter", text_, "name the guests' networks there")
    rooter = RooterClient(network.socket)
    try:
        status = await Monitor(network.vpns, rooter).status()
    except RooterUnavailable as exc:
        advice = "start it: systemctl start cuckoo-rooter, or 'cuckoo rooter'"
        yield Finding(FAIL, "rooter", f"{exc.log}: tasks with a route fail", advice)
        return
    finally:
        await rooter.close()
    yield Finding(OK, "rooter", f"it answers at {network.socket}")
    for vpn in status.details:
        if vpn.status == "up":
            yield Finding(OK, "vpn", f"{vpn.name} is up")
        else:
            advice = f"cuckoo vpn check {vpn.name}"
            yield Finding(WARN, "vpn", f"{vpn.name} is {vpn.status}: {vpn.error}", advice)


def _can_change(path: Path) -> bool:
    """Whether an account that is not root's has a file, or its folder, in its hands."""
    real = path.resolve()
    return os.geteuid() != 0 and any(os.access(each, os.W_OK) for each in (real, real.parent))


async def _machines(settings: Settings, *, deep: bool) -> AsyncIterator[Finding]:
    """Each by its hypervisor; with ``deep``, restored, reached and stopped."""
    if not any(section.machines for section in settings.machinery.values()):
        yield Finding(WARN, "machines", "none is configured", "cuckoo guest build")
        return
    good: list[Seen] = []
    async with machines.opened(settings, list(settings.machinery)) as hypervisors:
        for hypervisor, fault in hypervisors:
            if fault:
                yield Finding(FAIL, hypervisor.name, fault, f"conf/{hypervisor.name}.conf")
                continue
            for config in settings.machinery[hypervisor.name].machines:
                try:
                    seen = await look(hypervisor, config, await hypervisor.labels())
                    wrong = faults(seen, good)
                except MachineryError as exc:
                    wrong = (str(exc),)
                else:
                    good.append(seen)
                for each in wrong:
                    yield Finding(FAIL, config.name, each, f"conf/{hypervisor.name}.conf")
                if not wrong:
                    yield Finding(OK, config.name, f"{hypervisor.name} has it")
    if deep:
        for proof in await machines.prove_all(settings):
            level = FAIL if proof.fault else OK
            yield Finding(level, proof.name, proof.fault or "restored, reached and stopped")


async def _machines_of_server(settings: Settings) -> AsyncIterator[Finding]:
    """As the running server has them."""
    store = await Store.open(settings.database_url)
    try:
        for machine in await store.machines.list():
            level = FAIL if machine.quarantine else OK
            said = machine.quarantine or f"the server has it: {machine.status or 'unknown'}"
            yield Finding(level, machine.name, said, "" if level == OK else "see the server's log")
    finally:
        await store.close()
