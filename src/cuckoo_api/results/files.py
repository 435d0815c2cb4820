"""The files of one analysis as a guest may make them. Everything here blocks: for threads."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from cuckoo_api.results.protocol import FileHeader

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o640


class ResultFiles:
    """New files only, made by descriptor below the opened folder: no link is followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._list = threading.Lock()

    def create(self, destination: str) -> int:
        """A descriptor of a new file. Raises OSError: FileExistsError where there is one."""
        folder, _, name = destination.rpartition("/")
        root = os.open(self._folder, _FOLDER)
        try:
            place = os.open(folder, _FOLDER, dir_fd=root) if folder else os.dup(root)
        finally:
            os.close(root)
        try:
            return os.open(name, _NEW, _MODE, dir_fd=place)
        finally:
            os.close(place)

    def finish(self, handle: int, header: FileHeader | None, *, truncated: bool) -> None:
        """Close the file and, with a header, write its line in files.json. Raises OSError."""
        try:
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if header is None:
            return
        entry: dict[str, Any] = {
            "path": header.destination,
            "filepath": header.filepath,
            "pids": list(header.pids),
            "size": size,
        }
        if truncated:
            entry["truncated"] = True
        self._append(json.dumps(entry).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        with self._list:
            handle = os.open(self._folder / "files.json", _LIST, _MODE)
            try:
                before = os.fstat(handle).st_size
                try:
                    write_all(handle, line)
                except OSError:
                    os.ftruncate(handle, before)  # half a line would spoil the next one
                    raise
            finally:
                os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte. Raises OSError; what fitted is in the file then."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
