"""Fixtures of the full tests: one guest and its snapshots for all of them, a server for each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from serverkit import Namespace, NewSite, Site, configure, new_cwd, place_guest


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace of the test's own."""
    with Namespace() as made:
        yield made


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with two machines and their live snapshots, made as a user makes it."""
    cwd = tmp_path_factory.mktemp("prepared")
    cuckoo = [sys.executable, "-m", "cuckoo_api", "--cwd", str(cwd)]
    place_guest(cwd)
    with Namespace() as namespace:
        subprocess.run([*cuckoo, "init"], check=True)
        build = [*cuckoo, "guest", "build", "--machines", "2"]
        subprocess.run(namespace.inside(*build), check=True)
    return cwd


@pytest.fixture
async def new_site(prepared: Path, tmp_path: Path, namespace: Namespace) -> AsyncIterator[NewSite]:
    """Make a server on a working directory of its own; settings by ``section.key``."""
    async with AsyncExitStack() as stack:

        async def make(*, prefix: tuple[str, ...] = (), route: str = "none", **values: str) -> Site:
            cwd = new_cwd(tmp_path / "cwd", prepared, **values)
            configure(cwd, "routing", {"routing.route": route})
            site = Site(cwd, namespace, prefix)
            stack.push_async_callback(site.stop)
            return site

        yield make


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    """A running server with two machines and the sinkhole."""
    made = await new_site(route="sinkhole")
    await made.start()
    return made
