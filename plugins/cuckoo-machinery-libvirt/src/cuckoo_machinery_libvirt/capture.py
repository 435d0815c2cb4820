"""Capturing a machine's packets with QEMU's filter-dump, ordered over its monitor.

QEMU gets the file as an open descriptor. It runs as a user of its own that could not reach the
file by its path, and it needs no right to anything else of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import libvirt
import libvirt_qemu

from cuckoo_api.machinery import MachineryError
from cuckoo_machinery_libvirt.facts import hardware

FILTER = "cuckoo-capture"
MAX_SIZE = 4 << 30
"""Bytes of a capture that are kept."""


def begin(domain: libvirt.virDomain, spool: Path) -> None:
    """Have QEMU write the first network card's packets to ``spool``, a new file. Blocks."""
    label = domain.name()
    netdevs = hardware(domain.XMLDesc()).netdevs
    if not netdevs:
        raise MachineryError(f"{label}: capture: it has no network card")
    handle = os.open(spool, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # nobody else comes as far as this: the folder is private
        os.fchmod(handle, 0o666)
        given = _command(domain, "add-fd", files=[handle])
        try:
            # by this name QEMU opens the very file that it was given
            path = f"/proc/self/fd/{given['fd']}"
            _command(
                domain, "object-add",
                {"qom-type": "filter-dump", "id": FILTER, "netdev": netdevs[0], "file": path},
            )  # fmt: skip
        finally:
            _command(domain, "remove-fd", {"fdset-id": given["fdset-id"]})
    except BaseException:
        spool.unlink()
        raise
    finally:
        os.close(handle)


def end(domain: libvirt.virDomain) -> None:
    """Have QEMU finish the file. Blocks."""
    _command(domain, "object-del", {"id": FILTER})


def keep(spool: Path, path: Path) -> None:
    """Put the finished file where it belongs. Blocks."""
    with contextlib.suppress(FileNotFoundError):
        spool.chmod(0o640)
        if spool.stat().st_size > MAX_SIZE:
            os.truncate(spool, MAX_SIZE)
        shutil.move(spool, path)


def _command(
    domain: libvirt.virDomain,
    command: str,
    arguments: dict[str, object] | None = None,
    files: list[int] | None = None,
) -> dict[str, int]:
    text = json.dumps({"execute": command, "arguments": arguments or {}})
    answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, files or [], 0)
    content = json.loads(answer)
    if "error" in content:
        raise MachineryError(f"{domain.name()}: capture: {command}: {content['error']['desc']}")
    result: dict[str, int] = content["return"]
    return result
