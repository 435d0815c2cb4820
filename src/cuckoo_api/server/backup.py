"""``cuckoo backup``: a working directory in one file, also while a server works in it."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO

import msgspec

from cuckoo_api import __version__
from cuckoo_api.model.errors import BadInput, Unavailable
from cuckoo_api.model.task import now_text
from cuckoo_api.server.archive import (
    DATABASE,
    FORMAT,
    HEAD,
    MANIFEST,
    UNITS,
    Hashing,
    Head,
    check_name,
    entry,
    forget,
    linked_sample,
    writing,
)
from cuckoo_api.settings import database_url
from cuckoo_api.store import copy_database, database_path

HIDDEN_IN_STORAGE = "."
"""How names begin of what is being written, or removed, in storage/."""

Progress = Callable[[int, int], None]
"""Told of the files and bytes so far."""


def back_up(
    cwd: Path,
    target: Path,
    *,
    without: Collection[str] = (),
    progress: Progress = lambda files, size: None,
) -> tuple[int, int]:
    """Write ``target``, readable by its owner alone; how many files and bytes are in it. Blocks.

    The database is copied first. What is in storage/ then is at least what its rows speak of, but
    for what is deleted at that moment: tasks that run come back as waiting ones. ``without`` are
    units to leave out. Nothing is overwritten; broken off, nothing is left. Raises BadInput for
    the name, Unavailable where the disk or the database fails.
    """
    check_name(target)
    if target.exists():
        raise BadInput(f"{target} is there already")
    part = target.with_name(f".{target.name}.part")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=cwd) as scratch:
            copy = Path(scratch) / DATABASE
            copy_database(database_path(database_url(cwd)), copy)
            with _private(part) as raw, tempfile.TemporaryFile(dir=scratch) as manifest:
                with writing(raw, target.name) as archive:
                    writer = _Writer(archive, manifest, progress)
                    units = [name for name in UNITS if name not in without]
                    writer.add_head(units)
                    writer.add_file(copy, DATABASE)
                    for unit in units[1:]:
                        writer.add_folder(cwd / unit, unit)
                    writer.add_manifest()
                raw.flush()
                os.fsync(raw.fileno())
        os.link(part, target)  # unlike a rename, it overwrites nothing
    except OSError as exc:
        raise Unavailable(f"{target}: {exc.strerror or exc}") from exc
    finally:
        part.unlink(missing_ok=True)
    return writer.files, writer.size


def _private(path: Path) -> IO[bytes]:
    path.unlink(missing_ok=True)  # what a crash may have left
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class _Writer:
    """Adds members, and remembers each in the manifest."""

    def __init__(self, archive: tarfile.TarFile, manifest: IO[bytes], progress: Progress) -> None:
        self.files = self.size = 0
        self._archive = archive
        self._manifest = manifest
        self._progress = progress

    def add_head(self, units: list[str]) -> None:
        head = Head(format=FORMAT, version=__version__, made_on=now_text(), units=tuple(units))
        data = msgspec.json.encode(head)
        self._add_bytes(HEAD, io.BytesIO(data), len(data))

    def add_manifest(self) -> None:
        size = self._manifest.tell()
        self._manifest.seek(0)
        self._add_bytes(MANIFEST, self._manifest, size)

    def _add_bytes(self, name: str, data: IO[bytes], size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._archive.addfile(member, data)

    def add_folder(self, folder: Path, name: str) -> None:
        """All that is in it; what goes, or is not there, meanwhile is left out."""
        if not folder.is_dir():
            return
        self._add_entry(name, folder.stat(), tarfile.DIRTYPE)
        for parent, folders, files in os.walk(folder):
            below = os.path.relpath(parent, folder)
            inner = name if below == "." else f"{name}/{below}"
            if inner.startswith("storage/"):
                folders[:] = [each for each in folders if each[0] != HIDDEN_IN_STORAGE]
                files = [each for each in files if each[0] != HIDDEN_IN_STORAGE]
            folders.sort()
            for each in folders:
                try:
                    found = (Path(parent) / each).lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    self._add_entry(f"{inner}/{each}", found, tarfile.DIRTYPE)
            for each in sorted(files):
                self.add_file(Path(parent) / each, f"{inner}/{each}")

    def add_file(self, path: Path, name: str) -> None:
        """A regular file, or an analysis' link to its sample; what else there is, is left out."""
        try:
            if path.is_symlink():
                self._add_link(path, name)
                return
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(path, flags)
        except FileNotFoundError:
            return
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if stat.S_ISREG(found.st_mode):
                content = Hashing(file, found.st_size)
                self._add_entry(name, found, tarfile.REGTYPE, content)

    def _add_link(self, path: Path, name: str) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, os.fspath(path.readlink())
        try:
            sha256 = linked_sample(member)
        except BadInput:
            return
        self._archive.addfile(member)
        self._note(entry(sha256, 0, name))

    def _add_entry(
        self, name: str, found: os.stat_result, kind: bytes, content: Hashing | None = None
    ) -> None:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.mode, member.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
        if content is None:
            self._archive.addfile(member)
            self._note(entry("-", 0, name))
            return
        member.size = found.st_size
        self._archive.addfile(member, content)
        self._note(entry(content.digest(), found.st_size, name))
        self.files += 1
        self.size += found.st_size
        self._progress(self.files, self.size)

    def _note(self, line: bytes) -> None:
        self._manifest.write(line)
        forget(self._archive)
