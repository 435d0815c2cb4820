"""Capturing a machine's packets with QEMU's filter-dump, ordered over its monitor.

QEMU gets the file as an open descriptor. It runs as a user of its own that could not reach the
file by its path, and it needs no right to anything else of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from cuckoo_api.machinery import MachineryError
from cuckoo_machinery_libvirt.facts import hardware

FILTER = "cuckoo-capture"
MAX_SIZE = 4 << 30
"""Bytes of a capture that are kept."""
HEADERLESS = 8
"""The first QEMU that leaves virtio's headers out of a capture."""
_FILE_HEADER = 24
_PACKET = struct.Struct("=IIII")
_MAX_FRAME = 1 << 20


@dataclass(frozen=True)
class Capturing:
    """A capture under way."""

    spool: Path
    """Where QEMU writes."""
    path: Path
    """Where that goes in the end."""
    headed: bytes
    """The card's MAC address where each frame comes with a header of virtio's, else empty."""


def begin(domain: libvirt.virDomain, spool: Path, path: Path) -> Capturing:
    """Have QEMU write the first network card's packets to ``spool``, a new file. Blocks."""
    card = next(iter(hardware(domain.XMLDesc()).cards), None)
    if card is None:
        raise MachineryError(f"{domain.name()}: capture: it has no network card")
    version = _command(domain, "query-version")["qemu"]["major"]
    handle = os.open(spool, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # nobody else comes as far as this: the folder is private
        os.fchmod(handle, 0o666)
        given = _command(domain, "add-fd", files=[handle])
        try:
            # by this name QEMU opens the very file that it was given
            file = f"/proc/self/fd/{given['fd']}"
            order = {"qom-type": "filter-dump", "id": FILTER, "netdev": card.netdev, "file": file}
            _command(domain, "object-add", order)
        finally:
            _command(domain, "remove-fd", {"fdset-id": given["fdset-id"]})
    except BaseException:
        spool.unlink()
        raise
    finally:
        os.close(handle)
    headed = card.is_virtio and version < HEADERLESS
    return Capturing(spool, path, bytes.fromhex(card.mac.replace(":", "")) if headed else b"")


def end(domain: libvirt.virDomain) -> None:
    """Have QEMU finish the file. Blocks."""
    _command(domain, "object-del", {"id": FILTER})


def keep(capturing: Capturing) -> None:
    """Put the finished file where it belongs. Blocks."""
    spool, path = capturing.spool, capturing.path
    if not spool.exists():
        return
    try:
        if spool.stat().st_size > MAX_SIZE:
            os.truncate(spool, MAX_SIZE)
        if capturing.headed:
            behead(spool, path, capturing.headed)
        else:
            shutil.move(spool, path)
        path.chmod(0o640)
    finally:
        spool.unlink(missing_ok=True)


def behead(source: Path, target: Path, mac: bytes) -> None:
    """Copy a capture without the header that virtio puts before each frame.

    It has ten or twelve bytes, as the guest's driver has chosen; the guest's address tells.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        writer.write(reader.read(_FILE_HEADER))
        while len(head := reader.read(_PACKET.size)) == _PACKET.size:
            seconds, fraction, kept, length = _PACKET.unpack(head)
            frame = reader.read(min(kept, _MAX_FRAME))
            cut = 10 if mac in (frame[10:16], frame[16:22]) else 12
            if not cut < kept == len(frame):
                break  # the last one, in the middle of which QEMU ended
            writer.write(_PACKET.pack(seconds, fraction, kept - cut, length - cut))
            writer.write(frame[cut:])


def _command(
    domain: libvirt.virDomain,
    command: str,
    arguments: Mapping[str, object] | None = None,
    files: list[int] | None = None,
) -> dict[str, Any]:
    text = json.dumps({"execute": command, "arguments": arguments or {}})
    answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, files or [], 0)
    content = json.loads(answer)
    if "error" in content:
        raise MachineryError(f"{domain.name()}: capture: {command}: {content['error']['desc']}")
    result: dict[str, Any] = content["return"]
    return result
