"""The parts of a bootable image that need no tool: modules, the initial file system, settings."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net")
# the kernel refuses some modules before these, without naming them as dependencies
FIRST = ("virtio_ring", "virtio")
_ELF_MODULE = re.compile(rb"\0depends=([^\0]*)\0")


class GuestImage(msgspec.Struct, frozen=True, kw_only=True):
    """A built guest: files to boot it from, and how."""

    recipe: str
    """Hash of what it was built from."""
    architecture: str
    """Debian's word: ``amd64`` or ``arm64``."""
    append: str
    """The kernel's command line, to which ``guestip=ADDRESS/PREFIX guestgw=ADDRESS
    guestdns=ADDRESS`` are to be added."""
    memory: int
    """MiB."""
    packages: dict[str, str]
    """Name and version of each Debian package inside."""
    folder: str = ""

    @property
    def kernel(self) -> Path:
        return Path(self.folder) / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return Path(self.folder) / "initrd.img"

    @property
    def disk(self) -> Path:
        """A qcow2; boot from an overlay on it, never from the file itself."""
        return Path(self.folder) / "rootfs.qcow2"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or link of a cpio archive."""

    name: str
    mode: int
    data: bytes = b""


def read_image(folder: Path) -> GuestImage | None:
    """The finished image in a folder, or None when it is not there or not whole."""
    try:
        image = msgspec.json.decode((folder / "guest.json").read_bytes(), type=GuestImage)
    except (OSError, msgspec.DecodeError):
        return None
    image = msgspec.structs.replace(image, folder=str(folder))
    whole = all(path.is_file() for path in (image.kernel, image.initrd, image.disk))
    return image if whole else None


def module_order(folder: Path, wanted: Sequence[str] = DRIVERS) -> list[tuple[str, bytes]]:
    """Name and content of the wanted kernel modules and all they need, in loading order.

    A driver that is not there is built into this kernel, and left out.
    """
    available = {_plain(path.name.split(".ko")[0]): path for path in folder.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = available.get(name)
        if path is None or name in order:
            return
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        found = _ELF_MODULE.search(data)
        for need in found.group(1).decode().split(",") if found else []:
            add(_plain(need))
        order[name] = data

    for name in (*(name for name in FIRST if name in available), *wanted):
        add(_plain(name))
    return list(order.items())


def initrd(busybox: bytes, init: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """An uncompressed cpio archive: an emulated processor reads it faster than it unpacks it."""
    order = "".join(f"{name}.ko\n" for name, _ in modules)
    folders = ("bin", "dev", "proc", "sys", "root", "modules")
    return cpio(
        [
            *(Entry(name, 0o040755) for name in folders),
            Entry("bin/busybox", 0o100755, busybox),
            Entry("bin/sh", 0o120777, b"busybox"),
            Entry("init", 0o100755, init),
            Entry("modules/order", 0o100644, order.encode()),
            *(Entry(f"modules/{name}.ko", 0o100644, data) for name, data in modules),
        ]
    )


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive in the kernel's ``newc`` form, all owned by root, no dates."""
    return b"".join(_pieces(entries))


def _pieces(entries: Iterable[Entry]) -> Iterator[bytes]:
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), start=1):
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        yield head + bytes(-len(head) % 4)
        yield entry.data + bytes(-len(entry.data) % 4)


def _plain(name: str) -> str:
    return name.replace("-", "_")
