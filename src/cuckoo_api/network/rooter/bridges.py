"""Guests' bridges, and taps in them, in the kernel. What may pass is :mod:`ruleset`'s to say.

Call these after the firewall is there: nothing here stands open for a moment.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import struct
from collections.abc import Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from cuckoo_api.network.rooter.netlink import (
    IPV4,
    KILL_SWITCH,
    OURS,
    KernelRefused,
    change,
    netlink,
)
from cuckoo_api.network.rooter.ruleset import TAP, Tap

TUN = Path("/dev/net/tun")
IPV6 = Path("/proc/sys/net/ipv6/conf")
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x8000


def mac_of(bridge: str) -> str:
    """A bridge's own address: always the same, and nobody else's.

    Else it is that of a tap, another one after every start, and a guest that was restored goes on
    sending to the one that its snapshot knows. The QEMU plugin gives its own bridge the same.
    """
    return "02:" + hashlib.sha256(bridge.encode()).digest()[:5].hex(":")


async def make(made: Mapping[str, IPv4Interface]) -> None:
    """Make these afresh. Raises KernelRefused, also for a bridge that somebody else has made."""
    await remove(made)
    async with netlink() as link:
        for name, address in made.items():
            await change(link.link("add", ifname=name, kind="bridge", address=mac_of(name)))
            # before it is up: a guest is never to see an address by which it could reach the host
            await asyncio.to_thread(_shut_ipv6, name)
            index, length = await _index(link, name), address.network.prefixlen
            await change(link.addr("add", index=index, address=str(address.ip), prefixlen=length))
            await change(link.link("set", index=index, state="up"))


async def remove(made: Mapping[str, IPv4Interface]) -> None:
    """Remove these, where they are ours. Their networks are unreachable from then on.

    What the host still has for a guest is not to leave by the host's own way out.
    """
    async with netlink() as link:
        for name, address in made.items():
            await change(
                link.route(
                    "replace", family=IPV4, dst=str(address.network), type="unreachable",
                    priority=KILL_SWITCH, proto=OURS,
                )
            )  # fmt: skip
            for index in await link.link_lookup(ifname=name):
                [found] = [x async for x in await link.get_links(index)]
                if _kind(found) != "bridge" or found.get("address") != mac_of(name):
                    raise KernelRefused(
                        f"[rooter] bridges: there is a {name} that is not the rooter's: remove it, "
                        "give the bridge another name, or name it in interfaces only"
                    )
                await change(link.link("del", index=index), gone=True)


async def sweep() -> None:
    """Remove every tap of ours, whoever holds it."""
    async with netlink() as link:
        for found in [x async for x in await link.get_links()]:
            if str(found.get("ifname")).startswith(TAP) and _kind(found) == "tun":
                await change(link.link("del", index=found["index"]), gone=True)


async def plug(tap: Tap) -> int:
    """Make a tap in its bridge. It goes when the descriptor, which is the caller's, is closed."""
    try:
        descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise KernelRefused(f"{TUN}: {exc.strerror}") from exc
    # making and ending a tap waits for the kernel's one lock on all networks: in threads
    attached = asyncio.create_task(asyncio.to_thread(_attach, descriptor, tap.name))
    try:
        await asyncio.shield(attached)
        await asyncio.to_thread(_shut_ipv6, tap.name)
        async with netlink() as link:
            index, bridge = await _index(link, tap.name), await _index(link, tap.bridge)
            await change(link.link("set", index=index, master=bridge))
            await change(link.brport("set", index=index, isolated=1))
            await change(link.link("set", index=index, state="up"))
    except BaseException:
        await asyncio.wait({attached})  # else its number might be another file's by then
        await asyncio.to_thread(os.close, descriptor)
        raise
    return descriptor


async def unplug(tap: Tap) -> None:
    """Take a tap away, whoever holds it."""
    async with netlink() as link:
        for index in await link.link_lookup(ifname=tap.name):
            await change(link.link("del", index=index), gone=True)


def _attach(descriptor: int, name: str) -> None:
    # no IFF_VNET_HDR: QEMU before 8.0 writes that header into its captures, and with offloads
    # on they would hold segments that were never on a wire. TUN_EXCL: it is a new one
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as exc:
        raise KernelRefused(f"no tap {name}: {exc.strerror}") from exc


async def _index(link: Any, name: str) -> int:
    found = await link.link_lookup(ifname=name)
    if not found:
        raise KernelRefused(f"there is no interface {name}")
    return int(found[0])


def _kind(found: Any) -> str:
    about = found.get("linkinfo")
    return str(about.get("kind")) if about else ""


def _shut_ipv6(name: str) -> None:
    try:
        (IPV6 / name / "disable_ipv6").write_text("1")
    except FileNotFoundError:
        pass  # a host without IPv6
    except OSError as exc:
        raise KernelRefused(f"IPv6 of {name} cannot be shut: {exc.strerror}") from exc
