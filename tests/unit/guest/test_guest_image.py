"""The parts of the image that are made without tools, and what a host without them is told."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import zipfile
from pathlib import Path

import msgspec
import pytest

from cuckoo_api.guest import analyzer_zip, build, rootfs
from cuckoo_api.guest.image import Entry, GuestImage, cpio, initrd, module_order, read_image


def listed(archive: bytes, tmp_path: Path) -> dict[str, bytes]:
    """Unpack with the system's own cpio."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(
        ["cpio", "-i", "--quiet", "--no-absolute-filenames"],
        input=archive,
        cwd=folder,
        check=True,
        timeout=20,
    )
    return {
        path.relative_to(folder).as_posix(): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def test_cpio_is_read_by_cpio(tmp_path: Path) -> None:
    entries = [Entry("d", 0o040755), *(Entry(f"d/{n}", 0o100644, b"x" * n) for n in range(6))]
    assert listed(cpio(entries), tmp_path) == {"d": b""} | {f"d/{n}": b"x" * n for n in range(6)}


def test_initrd_loads_modules_in_order(tmp_path: Path) -> None:
    modules = [("virtio_ring", b"ring"), ("virtio", b"core")]
    content = listed(initrd(b"busybox!", b"#!/bin/sh\n", modules), tmp_path)
    assert content["modules/order"] == b"virtio_ring.ko\nvirtio.ko\n"
    assert content["modules/virtio.ko"] == b"core"
    assert content["init"] == b"#!/bin/sh\n"
    assert (tmp_path / "unpacked/init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "unpacked/bin/sh").readlink() == Path("busybox")


def module(folder: Path, name: str, *needs: str, packed: bool = False) -> None:
    data = b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
    file = folder / "lib/modules/6.1/kernel" / (f"{name}.ko.xz" if packed else f"{name}.ko")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(data) if packed else data)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    module(tmp_path, "virtio")
    module(tmp_path, "virtio_ring")
    module(tmp_path, "virtio_pci", "virtio", "virtio-pci-modern-dev", packed=True)
    module(tmp_path, "virtio-pci-modern-dev")
    module(tmp_path, "virtio_net", "net_failover", "virtio")
    module(tmp_path, "net_failover", "failover", packed=True)
    module(tmp_path, "failover")
    module(tmp_path, "unwanted")
    order = module_order(tmp_path)
    # virtio_blk is built into this kernel
    assert [name for name, _ in order] == [
        "virtio_ring",
        "virtio",
        "virtio_pci_modern_dev",
        "virtio_pci",
        "failover",
        "net_failover",
        "virtio_net",
    ]
    assert all(data.startswith(b"\x7fELF") for _, data in order)


def test_packages_that_only_dpkg_needs_stay_out() -> None:
    def kept(name: str) -> bool:
        return rootfs.kept(Path(name))

    assert kept("perl-base_5.36.0_amd64.deb")
    assert kept("bash_5.2_amd64.deb")
    assert not kept("perl_5.36.0_amd64.deb")
    assert not kept("dpkg_1.21_amd64.deb")


def finished(folder: Path, recipe: str) -> None:
    folder.mkdir(parents=True)
    image = GuestImage(recipe=recipe, architecture="amd64", append="a", memory=1, packages={})
    (folder / "guest.json").write_bytes(msgspec.json.encode(image))
    for name in ("vmlinuz", "initrd.img", "rootfs.qcow2"):
        (folder / name).touch()


def test_unfinished_image_is_none(tmp_path: Path) -> None:
    assert read_image(tmp_path) is None
    finished(tmp_path / "image", "r")
    image = read_image(tmp_path / "image")
    assert image is not None
    assert image.disk == tmp_path / "image/rootfs.qcow2"
    image.disk.unlink()
    assert read_image(tmp_path / "image") is None
    (tmp_path / "image/guest.json").write_text("{")
    assert read_image(tmp_path / "image") is None


def unexpected(text: str, share: float | None) -> None:
    raise AssertionError(text)


async def test_built_image_is_returned_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "image", build._recipe())
    monkeypatch.setenv("PATH", "/nonexistent")
    image = await build.build_guest(tmp_path / "image", unexpected)
    assert image.folder == str(tmp_path / "image")


@pytest.mark.parametrize(
    ("lacking", "advice"),
    [("apt-get", "Debian 12 or 13"), ("qemu-img", "apt-get install qemu-utils")],
)
async def test_host_without_a_tool_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str, advice: str
) -> None:
    which = shutil.which

    def without(tool: str, *, path: str | None = None) -> str | None:
        return None if tool == lacking else which(tool, path=path) or "/bin/true"

    monkeypatch.setattr(build.shutil, "which", without)
    with pytest.raises(build.BuildFailed, match=advice):
        await build.build_guest(tmp_path / "image", unexpected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "output", "text"),
    [
        (["apt-get", "x"], "a\nE: No space left", "apt-get failed: a\nE: No space left"),
        (["unshare", "x"], "Operation not permitted", "or build as root"),
    ],
)
def test_failures_show_the_last_words(command: list[str], output: str, text: str) -> None:
    assert text in build._explain(command, output)


def test_what_tools_leave_behind_is_no_part_of_a_guest(tmp_path: Path) -> None:
    own = tmp_path / "analyzer" / "linux"
    for name in ("analyzer.py", ".ruff_cache/0/x", "lib/__pycache__/a.pyc", "lib/a.py"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(b"")
    with zipfile.ZipFile(analyzer_zip("linux", tmp_path, tmp_path / "cache")) as archive:
        assert archive.namelist() == ["analyzer.py", "lib/a.py"]
