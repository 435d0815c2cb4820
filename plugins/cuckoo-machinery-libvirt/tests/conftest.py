"""Fixtures: a libvirtd and two guests, made once, in namespaces of their own."""

from __future__ import annotations

import ctypes
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuckoo_api.guest.image import GuestImage
from cuckoo_api.testing.guestimage import guest_image

sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))  # pagekit
sys.path.append(str(Path(__file__).resolve().parents[3] / "tests" / "full"))  # serverkit

from libvirtkit import BRIDGE, GATEWAY, Lab, Libvirtd, make_machines, run

pytest.register_assert_rewrite("cuckoo_api.testing.conformance", "cuckoo_api.testing.rig")

_CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    return guest_image(tmp_path_factory.mktemp("guest") / "image")


@pytest.fixture(scope="session")
def namespace(image: GuestImage) -> Iterator[None]:
    """All that follows runs in a network of its own, with the machines' bridge.

    The image comes first, for its building needs the host's network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as host:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "these tests need root: unshare")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        yield
        assert libc.setns(host.fileno(), _CLONE_NEWNET) == 0


@pytest.fixture(scope="session")
def lab(image: GuestImage, namespace: None) -> Iterator[Lab]:
    """A libvirtd with two machines and their live snapshots."""
    folder = Path(tempfile.mkdtemp(prefix="cuckoo-libvirt-"))
    libvirtd = Libvirtd(folder)
    try:
        libvirtd.prepare()
        libvirtd.start()
        make_machines(libvirtd, image)
        yield Lab(libvirtd)
    finally:
        libvirtd.close()
        shutil.rmtree(folder)
