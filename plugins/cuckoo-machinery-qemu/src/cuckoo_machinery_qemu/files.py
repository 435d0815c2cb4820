"""A machine's files: snapshots that are never written to again, and a run folder for each start.

<state_dir>/<label>/snapshots/<name>/disk.qcow2   the disk when the snapshot was taken
                                    state.qcow2  the memory, as a qcow2 internal snapshot
                                    meta.json    what must match for it to fit
<state_dir>/<label>/run/                          one QEMU's own; gone after its end
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog

from cuckoo_api.machinery import BackendUnavailable, BadConfig, SnapshotNotFound
from cuckoo_machinery_qemu.spec import MachineSpec

log = structlog.get_logger()

SNAPSHOT_TAG = "live"
STATE_SIZE = 1 << 40
"""The virtual size of state.qcow2, in bytes; the file is as large as the guest's memory."""
_FICLONE = 0x40049409
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class MachineFiles:
    """The folders of one machine. All methods block shortly; call them in a thread."""

    def __init__(self, state_dir: Path, label: str) -> None:
        if not _NAME.fullmatch(label):
            raise BadConfig(f"label {label!r}; allowed: up to 64 letters, digits, '_', '-' and '.'")
        self.root = state_dir / label
        self.run = self.root / "run"
        self.pidfile = self.root / "qemu.pid"

    def snapshot(self, name: str) -> Path:
        """Where a snapshot lies, or would lie."""
        if not _NAME.fullmatch(name):
            raise SnapshotNotFound(f"{self.root.name}: {name!r} is no name for a snapshot")
        return self.root / "snapshots" / name

    def check(self, name: str, identity: Mapping[str, str]) -> Path:
        """The snapshot's folder. Raises SnapshotNotFound: it is not there, or does not fit."""
        folder = self.snapshot(name)
        try:
            meta = json.loads((folder / "meta.json").read_text())
        except (OSError, ValueError):
            there = ", ".join(self.names()) or "none"
            raise SnapshotNotFound(
                f"{self.root.name}: no snapshot {name!r} (there is: {there}); "
                "'cuckoo guest build' makes it"
            ) from None
        for key, value in identity.items():
            if meta.get(key) != value:
                raise SnapshotNotFound(
                    f"{self.root.name}: snapshot {name!r} was taken with another {key} "
                    f"({meta.get(key)}, now {value}); 'cuckoo guest build' takes a new one"
                )
        return folder

    def names(self) -> list[str]:
        """The snapshots that there are."""
        return sorted(path.parent.name for path in self.root.glob("snapshots/*/meta.json"))

    def fresh_run(self) -> Path:
        """An empty run folder."""
        self.remove_run()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700)
        return self.run

    def remove_run(self) -> None:
        """Remove the run folder and all that QEMU left there."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.pidfile.unlink(missing_ok=True)

    def end_leftover(self) -> None:
        """Kill a QEMU of an earlier process that runs against all odds; remove its files."""
        try:
            pid = int(self.pidfile.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            where = Path(f"/proc/{pid}/cwd").readlink()
        except (OSError, ValueError):
            pass
        else:
            if f"cuckoo-{self.root.name}".encode() in words and where == self.run.resolve():
                log.warning("qemu.leftover", pid=pid, label=self.root.name)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.remove_run()

    def keep(self, name: str, identity: Mapping[str, str]) -> None:
        """Make the ended run's overlay and state the snapshot, replacing an older one."""
        final = self.snapshot(name)
        beside = final.with_name(f".{name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700, parents=True)
        (self.run / "overlay.qcow2").rename(beside / "disk.qcow2")
        (self.run / "state.qcow2").rename(beside / "state.qcow2")
        for path in beside.iterdir():
            os.chown(path, os.geteuid(), os.getegid())
            path.chmod(0o600)
        (beside / "meta.json").write_text(json.dumps(dict(identity)))
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)


def furnish(spec: MachineSpec, run: Path, snapshot: Path | None) -> MachineSpec:
    """Put the kernel, and the snapshot's memory, into the run folder; the spec that names them.

    The memory is a private copy: loading writes to it, and a QEMU in a guest's hands must not
    be able to change what the next analysis starts from.
    """
    for source, name in ((spec.kernel, "kernel"), (spec.initrd, "initrd")):
        if source is not None:
            place(source, run / name)
    if snapshot is not None:
        copy(snapshot / "state.qcow2", run / "state.qcow2")
    return dataclasses.replace(
        spec,
        kernel=spec.kernel and Path("kernel"),
        initrd=spec.initrd and Path("initrd"),
    )


def give_to(run: Path, uid: int) -> None:
    """Let a run folder, with what is in it, be a user's."""
    for path in run.iterdir():
        if path.stat().st_nlink == 1:  # a hard link is somebody else's file
            os.chown(path, uid, uid)
    os.chown(run, uid, uid)


def place(source: Path, target: Path) -> None:
    """Make a file readable in the run folder without copying it, where that can be done."""
    if source.stat().st_mode & stat.S_IROTH:
        try:
            target.hardlink_to(source)
        except OSError:
            pass  # another file system, or not our file
        else:
            return
    copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy with the file system's help: shared blocks, else inside the kernel, holes kept."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                raise
            _copy_data(reader.fileno(), writer.fileno(), source.stat().st_size)


def _copy_data(reader: int, writer: int, size: int) -> None:
    os.truncate(writer, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(reader, start, os.SEEK_DATA)
        except OSError:
            return  # only a hole is left
        end = os.lseek(reader, start, os.SEEK_HOLE)
        while start < end:
            copied = os.copy_file_range(reader, writer, end - start, start, start)
            if not copied:
                return
            start += copied


def take_over(source: Path, target: Path, *, limit: int) -> None:
    """Move a file that QEMU wrote to where we want it; QEMU may be in the guest's hands.

    Only a regular file of its own, no larger than ``limit`` bytes. Raises BackendUnavailable.
    """
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:  # a link and a socket cannot even be opened
        raise BackendUnavailable(f"{source.name}: {exc}") from exc
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > limit:
            raise BackendUnavailable(f"{source.name}: not the file that QEMU was asked for")
        with target.open("xb") as writer:
            _copy_data(handle, writer.fileno(), found.st_size)
        source.unlink()
    except OSError as exc:
        target.unlink(missing_ok=True)
        raise BackendUnavailable(f"{source.name}: {exc}") from exc
    finally:
        os.close(handle)
