"""One analysis on disk. A guest wrote much of it: only regular files inside it are ever served."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cuckoo_api.artefacts.write import disk_errors, sync_folder, write_atomic, write_whole
from cuckoo_api.model.errors import NotFound

SUBFOLDERS = (
    "buffer",
    "extracted",
    "files",
    "logs",
    "memory",
    "network",
    "package_files",
    "reports",
    "shots",
)
HIDDEN = ".deleted-"
"""How the name of a folder on its way out begins; the task's id follows."""
_NUMBER = re.compile(r"[0-9]{1,8}")
_SHOT = re.compile(r"[0-9]{4,8}\.jpg")
_DUMP = re.compile(r"[0-9]{1,10}(?:-[0-9]{1,10})?\.dmp")


TRIMMING = ".trimming"
TRIMMED = "trimmed.txt"
"""In a folder of which only the report is left, or will be."""
KEPT = frozenset({"reports", "task.json", "binary", TRIMMING, TRIMMED})
"""What stays of a trimmed folder."""
TRIMMED_TEXT = b"The files of this analysis were removed; its report was kept.\n"

MAX_MEMBERS = 100_000


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive of the folder."""

    name: str
    """Relative to the folder, with slashes."""
    size: int
    changed: int
    """Unix time."""
    is_folder: bool = False


class AnalysisFolder:
    """``storage/analyses/<id>`` in Cuckoo 2's layout; it need not exist."""

    def __init__(self, path: Path, binaries: Path) -> None:
        self.path = path
        self._binaries = binaries

    async def create(self, task_json: bytes, sha256: str = "") -> None:
        """Make the folder afresh; what an earlier attempt left goes.

        ``sha256`` names the sample that the link ``binary`` leads to. Raises Unavailable on a
        full disk.
        """
        await asyncio.to_thread(self._create, task_json, sha256)

    async def hide(self) -> None:
        """Take the folder out of sight, in one step that :meth:`show` undoes. It may not exist."""
        await asyncio.to_thread(self._move, self.path, self._hidden)

    async def show(self) -> None:
        """Undo :meth:`hide`; a folder that was made anew meanwhile stays."""
        try:
            await asyncio.to_thread(self._move, self._hidden, self.path)
        except OSError:  # it is there again, and not empty
            await self.remove()

    async def remove(self) -> None:
        """Remove the folder that was hidden, for good."""
        await asyncio.to_thread(shutil.rmtree, self._hidden, ignore_errors=True)

    # -- old ones -----------------------------------------------------------------------------

    @property
    def is_trimmed(self) -> bool:
        """Whether the files that a report is made of are gone, or about to be."""
        return any((self.path / mark).exists() for mark in (TRIMMING, TRIMMED))

    async def can_be_trimmed(self) -> bool:
        """Whether there is a folder that was not trimmed to its end."""
        return await asyncio.to_thread(
            lambda: self.path.is_dir() and not (self.path / TRIMMED).exists()
        )

    async def begin_trim(self) -> bool:
        """Mark the folder: from now on it is no ground for a report. False where there is none."""
        try:
            await write_atomic(self.path / TRIMMING, b"")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def undo_trim(self) -> None:
        """Take the mark away again."""
        await asyncio.to_thread((self.path / TRIMMING).unlink, missing_ok=True)

    async def finish_trim(self) -> None:
        """Remove all but the report. Broken off, it can be called again."""
        await asyncio.to_thread(self._trim)

    def _trim(self) -> None:
        with os.scandir(self.path) as entries:
            gone = [entry for entry in entries if entry.name not in KEPT]
        for entry in gone:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
        write_whole(self.path / TRIMMED, TRIMMED_TEXT)
        (self.path / TRIMMING).unlink(missing_ok=True)

    async def size(self, *, trimmed: bool = False) -> int:
        """Bytes of the regular files in it; with ``trimmed``, of those that trimming removes."""
        return await asyncio.to_thread(self._size, KEPT if trimmed else frozenset())

    def _size(self, without: Collection[str]) -> int:
        total = 0
        for parent, folders, files, handle in os.fwalk(self.path):
            if parent == str(self.path):
                folders[:] = [name for name in folders if name not in without]
                files = [name for name in files if name not in without]
            for name in files:
                try:
                    found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
        return total

    @property
    def _hidden(self) -> Path:
        return self.path.with_name(f"{HIDDEN}{self.path.name}")

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except FileNotFoundError:
            return
        sync_folder(source.parent)

    def _create(self, task_json: bytes, sha256: str) -> None:
        with disk_errors("the analysis folder"):
            if self.path.is_symlink():
                self.path.unlink()
            elif self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(mode=0o750, parents=True)
            for name in SUBFOLDERS:
                (self.path / name).mkdir(mode=0o750)
            if sha256:
                target = os.path.relpath(self._binaries / sha256, self.path)
                (self.path / "binary").symlink_to(target)
            write_whole(self.path / "task.json", task_json)
            sync_folder(self.path.parent)

    @property
    def pcap(self) -> Path:
        """Where the capture goes, whether it is there or not. To serve it, ask :meth:`file`."""
        return self.path / "dump.pcap"

    def report(self, form: str) -> Path:
        """The finished report, ``json`` or ``html``; NotFound."""
        return self.file(f"reports/report.{form}", "Report not found")

    def screenshots(self) -> list[Path]:
        """The pictures in the order they were taken; other names than ``NNNN.jpg`` are left out."""
        try:
            handle = self._folder_handle("shots")
        except (OSError, ValueError):
            return []
        try:
            with os.scandir(handle) as entries:
                names = [
                    entry.name
                    for entry in entries
                    if _SHOT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
                ]
        finally:
            os.close(handle)
        return [self.path / "shots" / name for name in sorted(names, key=lambda n: int(n[:-4]))]

    def screenshot(self, number: str) -> Path:
        """One picture; ``1``, ``01`` and ``0001`` name the same. NotFound."""
        missing = "Screenshot not found!"
        if not _NUMBER.fullmatch(number):
            raise NotFound(missing)
        return self.file(f"shots/{int(number):04}.jpg", missing)

    def members(self, only: str = "", without: Collection[str] = ()) -> list[Member]:
        """What an archive of the folder holds: its subfolders and regular files, sorted.

        ``only`` one subfolder, or all ``without`` some outermost names. The link to the sample
        counts as a file. NotFound where the folder, or the one subfolder, is not there. Blocks.
        """
        top = self.path / only
        if not top.is_dir() or top.is_symlink():
            raise NotFound("Report not found")
        found: list[Member] = []
        for parent, folders, files, handle in os.fwalk(top):  # it follows no link
            inner = os.path.relpath(parent, self.path)
            folders.sort()
            if inner == ".":
                folders[:] = [name for name in folders if name not in without]
                names = [name for name in files if name not in without]
            else:
                found.append(_member(inner, os.fstat(handle), is_folder=True))
                names = [f"{inner}/{name}" for name in files]
            found += filter(None, map(self._member, sorted(names)))
            if len(found) > MAX_MEMBERS:
                break
        return found

    def _member(self, name: str) -> Member | None:
        try:
            with self.open_member(name) as file:
                return _member(name, os.fstat(file.fileno()))
        except NotFound:
            return None

    def open_member(self, name: str) -> BinaryIO:
        """A regular file by its relative path, or the sample by its link's name. NotFound."""
        if name != "binary":
            return self.open(name)
        try:
            # only to where our own link leads: the folder is not the guest's, and yet
            target = (self.path / name).readlink().name
            return AnalysisFolder(self._binaries, self._binaries).open(target)
        except OSError as exc:
            raise NotFound("File not found") from exc

    def dumps(self) -> list[str]:
        """The names of the process dumps, without ``.dmp``, sorted. NotFound where none is."""
        try:
            names = sorted(
                path.stem for path in (self.path / "memory").iterdir() if _DUMP.fullmatch(path.name)
            )
        except OSError:
            names = []
        if not names:
            raise NotFound("Memory dump not found")
        return names

    def dump(self, name: str) -> Path:
        """One process dump by its name, without ``.dmp``, or by its process id. NotFound."""
        missing = "Memory dump not found"
        if not _DUMP.fullmatch(f"{name}.dmp"):
            raise NotFound(missing)
        if "-" not in name:
            name = next((dump for dump in self.dumps() if dump.partition("-")[0] == name), name)
        return self.file(f"memory/{name}.dmp", missing)

    def file(self, name: str, missing: str = "File not found") -> Path:
        """A regular file of the analysis by its relative path; NotFound with ``missing``.

        No link is followed, in any part of the path below the folder: a guest may have wished
        for one.
        """
        self.open(name, missing).close()
        return self.path / name

    def open(self, name: str, missing: str = "File not found") -> BinaryIO:
        """The same, open for reading: what was checked is what is read."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise NotFound(missing)
        try:
            folder = self._folder_handle(*parts[:-1])
            try:
                # not to wait for a writer, where it is a FIFO
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                handle = os.open(parts[-1], flags, dir_fd=folder)
            finally:
                os.close(folder)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return os.fdopen(handle, "rb")
            os.close(handle)
        except (OSError, ValueError):  # the answer is below, for this and for all else
            pass
        raise NotFound(missing)

    def _folder_handle(self, *parts: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        handle = os.open(self.path, flags)
        for part in parts:
            try:
                inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=handle)
            finally:
                os.close(handle)
            handle = inner
        return handle


def _member(name: str, found: os.stat_result, *, is_folder: bool = False) -> Member:
    return Member(name, 0 if is_folder else found.st_size, int(found.st_mtime), is_folder)
