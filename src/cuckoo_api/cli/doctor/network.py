"""Ports of this host, the rooter, and the VPNs."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from cuckoo_api.cli.doctor.finding import FAIL, OK, WARN, Finding
from cuckoo_api.cli.doctor.host import programs
from cuckoo_api.network.rooter.client import RooterClient, RooterUnavailable
from cuckoo_api.network.rooter.kernel import PROGRAMS
from cuckoo_api.network.vpn import Monitor
from cuckoo_api.settings import Settings


def port(settings: Settings) -> Finding:
    """Whether the API's can be had."""
    host, number = settings.api.host, settings.api.port
    fault = cannot_listen(host, number)
    if fault:
        advice = "stop what has it, or change [api] host and port"
        return Finding(FAIL, "port", f"{host}:{number}: {fault}", advice)
    return Finding(OK, "port", f"{host}:{number} is free")


def cannot_listen(host: str, number: int) -> str:
    """Why not; empty where one can."""
    try:
        family, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


async def routes(settings: Settings) -> AsyncIterator[Finding]:
    """The rooter and the VPNs, where guests need them."""
    network = settings.network
    is_needed = any(network.needs_rooter(route) for route in network.routes)
    if not is_needed and not network.rooter.bridges:
        return
    wanted = dict(PROGRAMS)
    if any(vpn.type == "wireguard" for vpn in network.vpns.values()):
        wanted["wg"] = "wireguard-tools"
    for finding in programs(wanted, "the rooter needs them"):
        yield finding
    if _can_change(settings.cwd / "conf" / "routing.conf"):
        text = "this account can write conf/routing.conf, and so say what a route is"
        advice = "where that matters: make it a link to a file of root's, for cuckoo rooter --conf"
        yield Finding(WARN, "rooter", text, advice)
    if not network.rooter.interfaces:
        text = "[rooter] interfaces in conf/routing.conf is empty: no guest can have a route"
        yield Finding(FAIL, "rooter", text, "name the guests' networks there")
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
