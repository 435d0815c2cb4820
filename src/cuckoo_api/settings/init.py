"""The working directory: where it is, and how a new one is filled."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from cuckoo_api.machinery import MachineryPlugin

CORE_FILES = ("cuckoo.conf", "routing.conf", "tokens.conf")
RULE_FILES = ("yara/starter.yar",)
FOLDERS = (
    "conf",
    "conf/yara",
    "log",
    "signatures",
    "storage",
    "storage/analyses",
    "storage/binaries",
)


def find_cwd(given: str | None) -> Path:
    """``--cwd``, else ``CUCKOO_CWD``, else ``~/.cuckoo``."""
    return Path(given or os.environ.get("CUCKOO_CWD") or "~/.cuckoo").expanduser()


def default_conf(name: str) -> str:
    """The commented default of one of the core's files."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent.parent / "conf"):  # a wheel, a source tree
        path = folder / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"the default {name} is not part of this installation")


def init_cwd(cwd: Path, plugins: Sequence[MachineryPlugin]) -> list[Path]:
    """Make what is missing of a working directory; the files that were written.

    A file that is there stays as it is, edited or not. Folders are private: samples lie there,
    and a token.
    """
    for name in FOLDERS:
        (cwd / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = {name: default_conf(name) for name in CORE_FILES}
    wanted["cuckoo.conf"] = with_value(
        wanted["cuckoo.conf"], "cuckoo", "api_token", secrets.token_hex(32)
    )
    wanted |= {f"{p.name}.conf": p.default_conf for p in plugins if p.default_conf}
    wanted |= {name: default_conf(name) for name in RULE_FILES}
    written: list[Path] = []
    for name, text in wanted.items():
        path = cwd / "conf" / name
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        written.append(path)
    return written


def with_value(text: str, section: str, key: str, value: str) -> str:
    """The file's text with one key changed and every comment kept.

    The key's line must be there, as it is in every default file.
    """
    pattern = re.compile(
        rf"(^\[{re.escape(section)}\]$(?:\n(?!\[).*)*?\n{re.escape(key)} *=)[^\n]*", re.MULTILINE
    )
    changed, count = pattern.subn(lambda found: f"{found[1]} {value}".rstrip(), text, count=1)
    if not count:
        raise ValueError(f"no line for [{section}] {key}")
    return changed
