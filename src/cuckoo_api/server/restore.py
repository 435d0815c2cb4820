"""``cuckoo restore``: what a backup holds, checked as a whole before anything takes its place."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from cuckoo_api.model.errors import BadInput, ConfigError, Conflict, CuckooError, Unavailable
from cuckoo_api.server.archive import (
    CHUNK,
    DATABASE,
    FORMAT,
    HEAD,
    MANIFEST,
    UNITS,
    Hashing,
    Head,
    entry,
    linked_sample,
    members,
    reading,
    unit_of,
)
from cuckoo_api.server.backup import Progress
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings import database_url
from cuckoo_api.store import database_faults, database_path, pending_migration
from cuckoo_api.store.copy import SIDE_FILES

IN_USE = "a server or another command works in it: stop it first. It runs"
BEFORE = ".before-restore"
"""Where the old content is until the new one is in its place."""
MAX_HEAD = 64 << 10


def restore(
    source: Path,
    cwd: Path,
    *,
    force: bool = False,
    progress: Progress = lambda files, size: None,
) -> Head:
    """Fill a working directory from a backup; what the backup says of itself. Blocks.

    The archive is unpacked beside, every file compared with the manifest, the database examined;
    only then is each unit that it holds put in place. Raises Conflict where something is there
    and not ``force``, ConfigError where a server runs, BadInput for an archive that is not whole
    or holds what no backup has. Whatever was there is untouched then.
    """
    cwd.mkdir(mode=0o700, parents=True, exist_ok=True)
    with engine_lock(cwd, IN_USE):
        if not force and (found := [unit for unit in UNITS if _is_filled(cwd / unit)]):
            raise Conflict(f"{cwd} holds {', '.join(found)} already; --force replaces them")
        if (cwd / BEFORE).exists():
            raise Conflict(
                f"an earlier restore was broken off: what was there before is in {cwd / BEFORE}; "
                "move it back, or remove it"
            )
        try:
            with tempfile.TemporaryDirectory(prefix=".restore-", dir=cwd) as scratch:
                staging = Path(scratch)
                with source.open("rb") as raw:
                    head = _unpack(raw, staging, progress)
                _check_database(staging / DATABASE)
                _put_in_place(staging, cwd, head.units)
        except OSError as exc:
            raise Unavailable(f"{exc.filename or source}: {exc.strerror or exc}") from exc
        return head


def _is_filled(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


# -- out of the archive ---------------------------------------------------------------------------


def _unpack(raw: IO[bytes], staging: Path, progress: Progress) -> Head:
    head: Head | None = None
    with reading(raw) as archive, tempfile.TemporaryFile(dir=staging) as seen:
        reader = _Reader(staging, seen, progress)
        for member in members(archive):
            if head is None:
                head = _head(archive, member)
            elif member.name == MANIFEST:
                reader.compare(_content(archive, member))
                return head
            else:
                reader.take(archive, member, head.units)
    raise BadInput("the archive has no end: it is only a part of a backup")


def _head(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Head:
    try:
        if member.name != HEAD or member.size > MAX_HEAD:
            raise BadInput("it is no backup of this server")
        head = msgspec.json.decode(_content(archive, member).read(), type=Head)
    except msgspec.MsgspecError as exc:
        raise BadInput(f"it is no backup of this server: {exc}") from exc
    if head.format != FORMAT:
        raise BadInput(f"it was made by a newer server, {head.version}")
    if strange := set(head.units) - set(UNITS):
        raise BadInput(f"it says that it holds {', '.join(sorted(strange))}")
    return head


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise BadInput(f"the archive's {member.name!r} is no file")
    return file


class _Reader:
    """Writes members below one folder, and notes each as the manifest should have it."""

    def __init__(self, staging: Path, seen: IO[bytes], progress: Progress) -> None:
        self._staging = staging
        self._seen = seen
        self._progress = progress
        self._files = self._size = 0

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, units: Iterable[str]) -> None:
        """Write one. No member can lead out of the folder: names are checked, and no link is
        followed, for none but those to samples is made.
        """
        name = member.name
        if unit_of(name) not in units:
            raise BadInput(f"the archive holds {name!r}, which it does not speak of")
        path = self._staging / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size = "-", 0
        try:
            if member.isdir():
                path.mkdir(mode=0o700, exist_ok=True)
            elif member.issym():
                digest = linked_sample(member)
                path.symlink_to(f"../../binaries/{digest}")
            elif member.isreg():
                size = member.size
                digest = self._write(path, archive, member)
            else:
                raise BadInput(f"the archive holds {name!r}, which is no file and no folder")
        except FileExistsError as exc:
            raise BadInput(f"the archive holds {name!r} twice") from exc
        self._seen.write(entry(digest, size, name))

    def _write(self, path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        content = Hashing(_content(archive, member), member.size)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, member.mode & 0o640 | 0o600), "wb") as file:
            while data := content.read(CHUNK):
                file.write(data)
        os.utime(path, (member.mtime, member.mtime))
        self._files += 1
        self._size += member.size
        self._progress(self._files, self._size)
        return content.digest()

    def compare(self, manifest: IO[bytes]) -> None:
        """BadInput unless the manifest says just what was seen."""
        self._seen.seek(0)
        for line in self._seen:
            if manifest.readline() != line:
                name = line.decode("utf-8", "replace").split(" ", 2)[2].strip()
                raise BadInput(f"{name} is not what the backup's manifest says: it was damaged")
        if missing := manifest.readline(CHUNK):
            name = missing.decode("utf-8", "replace").split(" ", 2)[-1].strip()
            raise BadInput(f"{name} is missing from the archive")


def _check_database(path: Path) -> None:
    if not path.is_file():
        raise BadInput("the backup has no database")
    try:
        pending_migration(path)
        faults = database_faults(path)
    except CuckooError as exc:
        raise BadInput(f"the backup's database cannot be used: {exc}") from exc
    if faults:
        raise BadInput(f"the backup's database is damaged: {'; '.join(faults)}")


# -- into place -----------------------------------------------------------------------------------


def _put_in_place(staging: Path, cwd: Path, units: Iterable[str]) -> None:
    """The old out of the way, the new in, the old gone. Broken off, the old is in BEFORE."""
    database = _database_of(staging, cwd)
    before = cwd / BEFORE
    (before / "storage").mkdir(mode=0o700, parents=True)
    for suffix in ("", *SIDE_FILES):
        old = database.with_name(database.name + suffix)
        if old.exists():
            shutil.move(old, before / f"{DATABASE}{suffix}")
    for unit in units:
        new, place = staging / unit, database if unit == DATABASE else cwd / unit
        if unit != DATABASE and place.exists():
            place.rename(before / unit)
        if new.exists():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.move(new, place)
    os.sync()
    shutil.rmtree(before)


def _database_of(staging: Path, cwd: Path) -> Path:
    """Where the database of the restored configuration belongs."""
    conf = staging / "conf" / "cuckoo.conf"
    url = database_url(staging) if conf.is_file() else database_url(cwd)
    try:
        path = database_path(url)
    except ConfigError as exc:
        raise BadInput(f"the backup's conf/cuckoo.conf: {exc}") from exc
    return cwd / DATABASE if path == staging / DATABASE else path
