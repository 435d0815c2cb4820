"""The page about a vSphere cluster, done word for word: vcsim answers as ``vcenter.example``."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from vspherekit import ONE, PASSWORD, Simulate, certificate

from pagekit import Reader

HOST = "vcenter.example"
_CLONE_NEWNET = 0x40000000
WITH_HOSTS = 'mount --bind "$1" /etc/hosts; shift; exec "$@"'


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network of the test's own, in which the port of HTTPS is free."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as host:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "this test needs root: unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(host.fileno(), _CLONE_NEWNET) == 0


def test_the_page_about_a_vsphere_cluster(
    namespace: None, simulate: Simulate, tmp_path: Path
) -> None:
    site = simulate(shown=certificate(tmp_path / "tls", f"DNS:{HOST}"))
    site.admin.snapshot(ONE)
    redirect = f"tcp dport 443 redirect to :{site.simulator.port};"
    chain = f"chain output {{ type nat hook output priority -100; {redirect} }}"
    table = f"table ip vcenter {{ {chain}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=table.encode(), check=True)
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {HOST}\n")
    inside = ["unshare", "--mount", "--", "sh", "-c", WITH_HOSTS, "sh", os.fspath(hosts)]
    with Reader(tmp_path, inside=inside) as reader:
        reader.follow("docs/tutorials/vsphere-cluster.md")
    assert f"[{ONE}]" in reader.said, "what was discovered"
    assert "cuckoo1" in reader.said, "what the server shows"
    logs = "".join(path.read_text() for path in reader.home.glob("*.log"))
    assert PASSWORD not in reader.said + logs
