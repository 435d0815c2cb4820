"""A rooter beside a site, and guests that it can give routes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

from fakekit import Site

from cuckoo_api.settings import Vpn
from cuckoo_api.testing.fake import Script, scripts
from rooterkit import NotedKernel, noted_rooter

LO = Vpn(name="vpn0", description="Spain, Europe", interface="lo", type="interface", country="es")
"""Its interface is up wherever a test runs."""


GUEST = "127.0.55.11"


def on_a_network(site: Site, script: Script = scripts.normal) -> None:
    """A machine whose guest is at an address of its own, as on a bridge."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site.add("one", script, ip=GUEST, port=port)
    fake = site.settings.machinery["fake"]
    [machine] = fake.machines
    machine = replace(
        machine, ip=GUEST, interface="guests0",
        resultserver_ip="127.0.0.1", resultserver_port=port,
    )  # fmt: skip
    site.settings = replace(site.settings, machinery={"fake": replace(fake, machines=(machine,))})


@contextlib.asynccontextmanager
async def rooter(site: Site, *vpns: Vpn) -> AsyncIterator[NotedKernel]:
    """A rooter for this site's guests, and these VPNs."""
    path = site.settings.cwd / "rooter.sock"
    site.configure("cuckoo", rooter=path)
    site.configure("rooter", interfaces=("guests0",))
    site.settings = replace(site.settings, vpns={one.name: one for one in vpns})
    async with noted_rooter(site.settings.network, path) as kernel:
        yield kernel
