"""The analysis folder, read with care: a guest chose the names and the contents of its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK = 1 << 20
MAX_NAMES = 20_000


class NotRegular(OSError):
    """A link, a FIFO, a device or a folder lies where a file should."""


class Input:
    """An open regular file of which no more than a limit is read."""

    def __init__(self, handle: int, limit: int) -> None:
        self._file = os.fdopen(handle, "rb", buffering=CHUNK)
        self.size = os.fstat(handle).st_size
        self._limit = self._left = limit
        self.truncated = self.size > limit
        """Whether the file is longer than the limit."""

    def read(self, size: int = CHUNK) -> bytes:
        """The next bytes; empty at the end or at the limit."""
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data

    def chunks(self) -> Iterator[bytes]:
        """The rest, piece by piece."""
        while data := self.read(CHUNK):
            yield data

    def rewind(self) -> None:
        """Back to the first byte, with the whole limit."""
        self._file.seek(0)
        self._left = self._limit

    def fileno(self) -> int:
        """The file's own descriptor, for a library that reads by itself; no limit holds there."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


class Evidence:
    """The files of one analysis. ``limit`` is in bytes, for each file."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    @contextmanager
    def open(self, name: str, limit: int | None = None) -> Iterator[Input]:
        """A regular file by its relative path. No link is followed in any part of it.

        Raises FileNotFoundError, NotRegular or another OSError.
        """
        source = Input(self._handle(name), self._limit if limit is None else limit)
        try:
            yield source
        finally:
            source.close()

    @contextmanager
    def sample(self) -> Iterator[Input]:
        """The submitted file. Its link is followed: the server itself made it."""
        handle = os.open(self._folder / "binary", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        source = Input(_regular(handle, "binary"), self._limit)
        try:
            yield source
        finally:
            source.close()

    def read(self, name: str, limit: int) -> bytes:
        """A small file's first ``limit`` bytes; empty when there is none that is regular."""
        try:
            with self.open(name, limit) as source:
                return source.read(limit)
        except OSError:
            return b""

    def names(self, folder: str) -> list[str]:
        """The sorted names of a subfolder's regular files; empty when it is no real folder."""
        try:
            handle = os.open(
                self._folder / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError:
            return []
        names: list[str] = []
        try:
            with os.scandir(handle) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        names.append(entry.name)
                    if len(names) >= MAX_NAMES:
                        break
        finally:
            os.close(handle)
        return sorted(names)

    def fill(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Make these the only files of a subfolder that is ours. Raises OSError."""
        with suppress(FileExistsError):
            (self._folder / folder).mkdir(mode=0o750)
        here = os.open(
            self._folder / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            for name in self.names(folder):
                os.unlink(name, dir_fd=here)
            for name, content in files.items():
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o640, dir_fd=here), "wb") as file:
                    file.write(content)
        finally:
            os.close(here)

    def _handle(self, name: str) -> int:
        *folders, last = name.split("/")
        if any(part in ("", ".", "..") for part in (*folders, last)):
            raise NotRegular(f"not a plain relative path: {name!r}")
        here = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folders:
                below = os.open(
                    part,
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=here,
                )
                os.close(here)
                here = below
            # without waiting: a FIFO would block for ever
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return _regular(os.open(last, flags, dir_fd=here), name)
        finally:
            os.close(here)


def _regular(handle: int, name: str) -> int:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotRegular(f"not a regular file: {name!r}")
    return handle
