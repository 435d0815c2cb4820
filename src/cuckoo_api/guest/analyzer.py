"""The zip of an analyzer as the agent unpacks it, made once for each content."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import zipfile
from pathlib import Path

from cuckoo_api.guest.errors import NoAnalyzer

PAYLOAD = Path(__file__).parent / "payload"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def analyzer_zip(platform: str, cwd: Path, cache: Path) -> Path:
    """The analyzer for a platform as a zip in ``cache``.

    Taken from ``cwd/analyzer/<platform>`` where that folder exists, else from the one that comes
    with this package. The same content always gives the same file, byte for byte. Blocking, a few
    milliseconds. Raises NoAnalyzer, or OSError when the cache cannot be written.
    """
    folder = _folder(platform, cwd)
    files = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in _walk(folder)]
    # the agent computes the same over an analyzer that its image came with
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(b"%d %d " % (len(name.encode()), len(data)) + name.encode() + data)
    target = cache / f"analyzer-{platform}-{digest.hexdigest()[:32]}.zip"
    if not target.exists():
        _write(target, files)
    return target


def digest_of(archive: Path) -> str:
    """The hash of the content of a zip that analyzer_zip made."""
    return archive.stem.rpartition("-")[2]


def _folder(platform: str, cwd: Path) -> Path:
    if not re.fullmatch(r"[a-z0-9_]{1,32}", platform):
        raise NoAnalyzer(f"{platform!r} is not the name of a platform")
    for folder in (cwd / "analyzer" / platform, PAYLOAD / "analyzers" / platform):
        if (folder / "analyzer.py").is_file():
            return folder
    raise NoAnalyzer(
        f"There is no analyzer for the platform {platform}: "
        f"put one with an analyzer.py into {cwd / 'analyzer' / platform}"
    )


def _walk(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = (path for path in found if not is_left_behind(path.relative_to(folder)))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def is_left_behind(name: Path) -> bool:
    """Whether a tool of ours wrote it (``__pycache__``, ``.ruff_cache``): no part of a guest."""
    return any(part.startswith((".", "__pycache__")) for part in name.parts)


def _write(target: Path, files: list[tuple[str, bytes]]) -> None:
    """Write beside and rename: several tasks may ask for the same zip at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".analyzer-")
    try:
        # stored, not deflated: the guest's emulated processor is slower than the network
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, data in files:
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
