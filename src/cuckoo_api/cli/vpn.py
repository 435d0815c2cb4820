"""``cuckoo vpn``: the state of each VPN, and the proof of one."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from rich.table import Table

from cuckoo_api.cli.common import connect, console, need_cwd, text
from cuckoo_api.model.errors import BadInput, CuckooError
from cuckoo_api.network.rooter.client import RooterClient
from cuckoo_api.network.tunnels import Look, look_at
from cuckoo_api.network.vpn import SILENCE
from cuckoo_api.settings import Vpn, load_network

NONE = "No VPN is set up; conf/routing.conf has a section to begin with."
STYLES = {"up": "green", "stale": "yellow", "down": "red"}
PAUSE = 1.0
"""Seconds between two looks at a counter."""


class Step(msgspec.Struct, frozen=True):
    """One thing that has to hold."""

    name: str
    holds: bool
    detail: str


async def show(arguments: argparse.Namespace, cwd: Path) -> int:
    """A table of the VPNs as the running server has them now."""
    async with connect(cwd, arguments.url, arguments.token) as client:
        vpns = (await client.get("/vpn/status"))["details"]
    if arguments.json:
        print(json.dumps(vpns))
        return 0
    if not vpns:
        console.print(NONE)
        return 0
    table = Table("name", "state", "by", "since", "interface", "peer", "received", "sent", "why")
    for vpn in vpns:
        table.add_row(
            *(text(vpn["name"]), text(vpn["status"], STYLES.get(vpn["status"], ""))),
            *(text(vpn[key]) for key in ("proof", "since", "interface", "peer")),
            *(text(f"{vpn[key]:,}") for key in ("rx_bytes", "tx_bytes")),
            text(vpn["error"], "red"),
        )
    console.print(table)
    return 0


async def check(arguments: argparse.Namespace, cwd: Path) -> int:
    """Each step as it is known; exit code 1 when one does not hold."""
    need_cwd(cwd)
    network = load_network(cwd)
    vpn = network.vpns.get(arguments.name)
    if vpn is None:
        there = ", ".join(network.vpns) or "none"
        raise BadInput(f"conf/routing.conf has no VPN {arguments.name}; there is: {there}")
    rooter = RooterClient(network.socket)
    steps: list[Step] = []
    try:
        async for step in _steps(vpn, rooter, network.socket):
            steps.append(step)
            if not arguments.json:
                mark = text("ok", "green") if step.holds else text("no", "red")
                console.print(mark, text(f"{step.name:<10}"), text(step.detail), soft_wrap=True)
    finally:
        await rooter.close()
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(steps)))
    return 0 if all(step.holds for step in steps) else 1


async def _steps(vpn: Vpn, rooter: RooterClient, path: Path) -> AsyncIterator[Step]:
    try:
        await rooter.hello()
    except CuckooError as exc:
        detail = f"{exc.log or exc}; start it with 'cuckoo rooter': guests need it for this route"
        yield Step("rooter", False, detail)
        if vpn.type == "wireguard":
            return  # nobody else may ask WireGuard
    else:
        yield Step("rooter", True, f"answers at {path}")
    seen = await look_at(vpn, rooter)
    if not (seen.present and seen.connected):
        yield Step("tunnel", False, seen.error)
        return
    peer = f" to {seen.peer}" if seen.peer else ""
    amount = f"{seen.rx_bytes:,} bytes came, {seen.tx_bytes:,} went"
    yield Step("tunnel", True, f"{vpn.interface}{peer}: {amount}")
    yield await _proof(vpn, rooter, seen)


async def _proof(vpn: Vpn, rooter: RooterClient, seen: Look) -> Step:
    """Whether something comes back."""
    if vpn.probe:
        if not seen.probed:
            return Step("answer", False, f"probe {vpn.probe}: {seen.error}")
        address = f"; the world sees {seen.address}" if seen.address else ""
        return Step("answer", True, f"{vpn.probe} answered{address}")
    if seen.heard is not None:
        return await _heard(vpn, rooter, seen.heard)
    return Step("answer", False, "nothing proves it: set a probe for it in conf/routing.conf")


async def _heard(vpn: Vpn, rooter: RooterClient, before: int) -> Step:
    for _ in range(int(SILENCE / PAUSE)):
        await asyncio.sleep(PAUSE)
        seen = await look_at(vpn, rooter)
        if seen.heard is None:
            return Step("answer", False, seen.error)
        if seen.heard != before:
            return Step("answer", True, "the peer has sent something; a probe would prove more")
    return Step("answer", False, f"nothing came from the peer for {SILENCE:.0f} s")
