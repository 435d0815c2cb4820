"""The pages about KVM hosts and Windows guests, done word for word on the lab's libvirtd."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from libvirtkit import Lab, connected

from cuckoo_api.guest.analyzer import PAYLOAD
from pagekit import Reader


@pytest.fixture
def reader(lab: Lab, tmp_path: Path) -> Iterator[Reader]:
    """Somebody on the lab's host. Snapshots and names that they give are taken back."""
    reader = Reader(tmp_path, inside=lab.libvirtd.inside())
    yield reader
    with connected(lab.libvirtd.uri) as connection:
        for domain in connection.listAllDomains():
            for snapshot in domain.listAllSnapshots():
                if snapshot.getName() == "ready":
                    snapshot.delete()
            if domain.name() == "win10":
                domain.rename("two")


def test_the_page_about_a_kvm_host(reader: Reader) -> None:
    with reader:
        reader.follow("docs/tutorials/kvm-host.md")
    assert "machines = one, two" in reader.said, "what was discovered"
    assert "works" in reader.said, "the check"
    assert "/tmp/dropped" in reader.said, "the summary"


def test_the_page_about_a_windows_guest_with_a_linux_in_its_place(reader: Reader, lab: Lab) -> None:
    with connected(lab.libvirtd.uri) as connection:
        connection.lookupByName("two").rename("win10")
    shutil.copytree(PAYLOAD / "analyzers/linux", reader.work / "CAPEv2/analyzer/windows")
    shutil.copy("/bin/true", reader.work / "sample.exe")
    with reader:
        reader.follow("docs/tutorials/windows-guest.md")
    assert "works" in reader.said
    assert "sample.exe" in reader.said
