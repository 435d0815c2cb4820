"""The blocking half of an upload: bytes become a sample that lies under its SHA-256."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cuckoo_api.artefacts.write import disk_errors, sync_folder, write_all
from cuckoo_api.model.errors import Unavailable
from cuckoo_api.model.sample import NewSample

READY = b"ready"
FAILED = b"null"
"""What a keeper says when it can begin, and of what it could not do."""
KEEP, TYPE, HASH, SCREEN = b"k", b"t", b"h", b"s"
"""What it is told to do, see ``keeper.py``."""
NEW, OLD, BAD = "new", "old", "bad"
"""What it says of a screenshot, see ``screens.py``."""
INCOMING = ".incoming-"
"""How the names of unfinished uploads begin."""


class Digests:
    """All cheap hashes of one file, as its bytes come."""

    def __init__(self) -> None:
        self._hashes = [hashlib.new(name) for name in ("md5", "sha1", "sha256", "sha512")]
        self._crc32 = 0
        self._size = 0

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        for digest in self._hashes:
            digest.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._size += len(data)

    def sample(self, fuzzy: str | None, kind: str) -> NewSample:
        """The sample that came."""
        md5, sha1, sha256, sha512 = (digest.hexdigest() for digest in self._hashes)
        return NewSample(
            md5=md5,
            sha1=sha1,
            sha256=sha256,
            sha512=sha512,
            crc32=f"{self._crc32:08X}",
            ssdeep=fuzzy,
            file_size=self._size,
            file_type=kind,
        )


class Kept(NamedTuple):
    """A sample, and an open file whose shared lock keeps it from being removed."""

    sample: NewSample
    handle: int


def keep(folder: Path, data: bytes, kind: str) -> Kept:
    """Put a whole small file under its SHA-256, unless it is there already; without its ssdeep.

    :func:`make_durable` comes next. Raises Unavailable on a full disk.
    """
    digests = Digests()
    digests.update(data)
    sample = digests.sample(None, kind)
    final = folder / sample.sha256
    handle = adopted(final, len(data))
    if handle >= 0:
        return Kept(sample, handle)
    path, handle = incoming(folder)
    try:
        with disk_errors("the upload"):
            write_all(handle, data)
        publish(path, handle, final)
    except BaseException:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise
    return Kept(sample, handle)


def publish(
    path: Path, handle: int, final: Path, is_given_up: Callable[[], bool] = lambda: False
) -> None:
    """Give what was written its name, locked as those that others adopted."""
    if is_given_up():
        raise Unavailable("The upload was given up")
    with disk_errors("the upload"):
        path.rename(final)
    # its lock goes on holding, now beside those of others who keep the same file
    fcntl.flock(handle, fcntl.LOCK_SH)


def make_durable(folder: Path, handles: Iterable[int]) -> None:
    """Put files and their names on the disk; also those that are there: others just wrote them.

    The names come first and the bytes then, for both are one transaction of the file system so.
    A name whose bytes a power cut took is of another size, and is not adopted.
    """
    with disk_errors("the upload"):
        for handle in handles:
            os.fsync(handle)
        sync_folder(folder)


def incoming(folder: Path) -> tuple[Path, int]:
    """A new file, locked for as long as it is open."""
    while True:
        path = folder / f"{INCOMING}{secrets.token_hex(8)}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                return path, handle
        except BlockingIOError:
            pass
        # a process that starts took it for a leftover, between its making and its locking
        os.close(handle)
        path.unlink(missing_ok=True)


def adopted(path: Path, size: int) -> int:
    """The sample that is there already, whole, open and locked against removal; -1 if it is not."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    fcntl.flock(handle, fcntl.LOCK_SH)  # who removes a sample does it in a moment
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_size == size and found.st_nlink:
        return handle
    os.close(handle)
    return -1


def locked_alone(path: Path) -> int:
    """The file, locked so that no upload adopts it; -1 where one has it, or it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    return handle


def remove_leftovers(folder: Path) -> None:
    """Remove uploads whose process is gone; another living process' ones are locked, and stay."""
    for path in folder.glob(f"{INCOMING}*"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # finished or removed meanwhile
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)
