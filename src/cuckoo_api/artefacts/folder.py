"""One analysis on disk. A guest wrote much of it: only regular files inside it are ever served."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from pathlib import Path

from cuckoo_api.artefacts.write import disk_errors, write_whole
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
_SHOT = re.compile(r"[0-9]{1,8}")


class AnalysisFolder:
    """``storage/analyses/<id>`` in Cuckoo 2's layout; it need not exist."""

    def __init__(self, path: Path, binaries: Path) -> None:
        self.path = path
        self._binaries = binaries

    async def create(self, task_json: bytes, sha256: str = "") -> None:
        """Make the folder afresh; what an earlier attempt left goes.

        ``sha256`` names the sample that the link ``binary`` leads to.
        """
        await asyncio.to_thread(self._create, task_json, sha256)

    def _create(self, task_json: bytes, sha256: str) -> None:
        with disk_errors("the analysis folder"):
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(mode=0o750, parents=True)
            for name in SUBFOLDERS:
                (self.path / name).mkdir(mode=0o750)
            if sha256:
                target = os.path.relpath(self._binaries / sha256, self.path)
                (self.path / "binary").symlink_to(target)
            write_whole(self.path / "task.json", task_json)

    @property
    def pcap(self) -> Path:
        """Where the capture goes, whether it is there or not."""
        return self.path / "dump.pcap"

    def report(self, form: str) -> Path:
        """The finished report; NotFound."""
        return self.file(f"reports/report.{form}", "Report not found")

    def screenshots(self) -> list[Path]:
        """The pictures in the order they were taken."""
        shots = self.path / "shots"
        try:
            names = sorted(
                entry.name
                for entry in os.scandir(shots)
                if entry.name.endswith(".jpg") and entry.is_file(follow_symlinks=False)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [shots / name for name in names]

    def screenshot(self, number: str) -> Path:
        """One picture; ``1``, ``01`` and ``0001`` name the same. NotFound."""
        missing = "Screenshot not found!"
        if not _SHOT.fullmatch(number):
            raise NotFound(missing)
        return self.file(f"shots/{int(number):04}.jpg", missing)

    def file(self, name: str, missing: str = "File not found") -> Path:
        """A regular file of the analysis by its relative path; NotFound with ``missing``.

        No link is followed, in any part of the path: a guest may have wished for one.
        """
        path = self.path
        for part in Path(name).parts:
            path = path / part
            try:
                mode = path.lstat().st_mode
            except (OSError, ValueError):
                raise NotFound(missing) from None
            if part in ("..", "/") or stat.S_ISLNK(mode):
                raise NotFound(missing)
        if not stat.S_ISREG(mode):
            raise NotFound(missing)
        return path
