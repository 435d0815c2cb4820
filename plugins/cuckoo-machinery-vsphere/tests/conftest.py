"""Fixtures: the simulator, built once, and a process of it for each test."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))  # pagekit

from vcsim import Simulator, build
from vspherekit import (
    ONE,
    PASSWORD,
    TWO,
    USER,
    Admin,
    Certificate,
    Make,
    Simulate,
    Site,
    Wire,
    certificate,
    config,
)

from cuckoo_machinery_vsphere.backend import VsphereBackend

pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")


def pytest_configure(config: pytest.Config) -> None:
    """Let Python's ssl forget a socket.

    Where the server resets a connection between its making and its handshake, ``SSLSocket._create``
    raises without closing it. Nobody else has it; it never had a peer, which tells it from others.
    """
    unconnected = r"unclosed <ssl\.SSLSocket [^>]*laddr=\('127\.0\.0\.1', \d+\)>"
    config.addinivalue_line("filterwarnings", f"ignore:{unconnected}:ResourceWarning")


@pytest.fixture(scope="session")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """What the simulator shows, unless told otherwise."""
    return certificate(tmp_path_factory.mktemp("tls") / "trusted")


@pytest.fixture(scope="session")
def program() -> Path:
    return build()


@pytest.fixture
def simulate(program: Path, trusted: Certificate) -> Iterator[Simulate]:
    """Start simulators; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, shown: Certificate = trusted) -> Site:
            login = ("-user", USER, "-password", PASSWORD)
            simulator = Simulator(program, *login, "-certificate", str(shown.server), *words)
            stack.callback(simulator.close)
            admin = Admin(simulator.port)
            stack.callback(admin.close)
            return Site(simulator, admin, shown)

        yield start


@pytest.fixture
def site(simulate: Simulate) -> Site:
    """Two machines, off, with a snapshot of each running."""
    site = simulate()
    for name in (ONE, TWO):
        site.admin.snapshot(name)
    site.simulator.calls()
    return site


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Open backends; they are closed at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(
            site: Site, *labels: str, port: int = 0, **options: str
        ) -> VsphereBackend:
            own = {"ca_file": str(site.certificate.authority), **options}
            port = port or site.simulator.port
            backend = VsphereBackend(config(tmp_path, port, *labels, **own))
            stack.push_async_callback(backend.close)
            await backend.open()
            return backend

        yield open_one


@pytest.fixture
async def backend(make: Make, site: Site) -> VsphereBackend:
    """An open backend on the site."""
    return await make(site)


@pytest.fixture
async def wire(site: Site) -> AsyncIterator[Wire]:
    """A way to the site's simulator that can be cut."""
    wire = Wire(site.simulator.port)
    await wire.mend()
    yield wire
    await wire.cut()
