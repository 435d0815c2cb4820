"""Fixtures: the real tests run in a network namespace of their own, with snapshots made once."""

from __future__ import annotations

import asyncio
import ctypes
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from qemukit import Host, Lab, run, take_snapshots

from cuckoo_api.guest.image import GuestImage
from cuckoo_api.testing.guestimage import guest_image
from cuckoo_machinery_qemu.backend import QemuBackend

pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")

Labs = Callable[[str], Lab]
Make = Callable[..., Awaitable[QemuBackend]]
_CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    return guest_image(tmp_path_factory.mktemp("guest") / "image")


@pytest.fixture(scope="session")
def namespace(image: GuestImage) -> Iterator[None]:
    """All that follows runs in an empty network: no bridge, tap or rule can stay on the host.

    The image comes first, for its building needs the host's network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as host:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "these tests need root: unshare")
        run("ip", "link", "set", "lo", "up")
        yield
        assert libc.setns(host.fileno(), _CLONE_NEWNET) == 0


@pytest.fixture(scope="session")
def labs(image: GuestImage, namespace: None, tmp_path_factory: pytest.TempPathFactory) -> Labs:
    """The machines for a kind of network; their snapshots are taken when first asked for."""

    @functools.cache
    def prepare(network: str) -> Lab:
        lab = Lab(network, image, tmp_path_factory.mktemp(f"snapshots-{network}"))
        asyncio.run(take_snapshots(lab))
        return lab

    return prepare


@pytest.fixture(params=["bridge", "user"])
def lab(labs: Labs, request: pytest.FixtureRequest) -> Lab:
    """The machines, once for each kind of network."""
    return labs(request.param)


@pytest.fixture
async def make(lab: Lab, tmp_path: Path) -> AsyncIterator[Make]:
    """Open backends on the lab's machines, all on one state folder; closed at the end."""
    state_dir = lab.state_dir(tmp_path / "state")
    async with AsyncExitStack() as stack:

        async def open_one(**changes: object) -> QemuBackend:
            backend = QemuBackend(lab.config(state_dir, **changes))  # type: ignore[arg-type]  # any key
            stack.push_async_callback(backend.close)
            await backend.open()
            return backend

        yield open_one


@pytest.fixture
async def backend(make: Make) -> QemuBackend:
    """An open backend."""
    return await make()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """What guests may try to reach."""
    made = Host()
    yield made
    await made.close()
