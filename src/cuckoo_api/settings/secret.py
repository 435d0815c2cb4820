"""Secrets that do not stand in the configuration but in a file, or that systemd brings."""

from __future__ import annotations

import os
import re
from pathlib import Path

FILE, CREDENTIAL = "file:", "credential:"
"""How a value begins that says where the secret is."""
DIRECTORY = "CREDENTIALS_DIRECTORY"
"""The variable in which systemd tells a service where its credentials are."""
MAX_SIZE = 64 << 10
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]+")


class BadSecret(Exception):
    """There is no secret to be had; the text says why, and nothing of what was read."""


def resolve(value: str, *, credentials: bool = True) -> tuple[str, str]:
    """The secret that a value of the configuration means, and what is to be warned of.

    Without ``credentials`` those that systemd brings stay what stands there.

    Raises BadSecret, also for an empty file: an empty token would mean that there is none.
    """
    if value.startswith(FILE):
        path = Path(value.removeprefix(FILE).strip()).expanduser()
        if not path.is_absolute():
            raise BadSecret(
                f"{value!r}; allowed: {FILE} and a whole path, as {FILE}/etc/cuckoo/key"
            )
        return _read(path), _warning(path)
    if value.startswith(CREDENTIAL):
        name = value.removeprefix(CREDENTIAL).strip()
        if not _NAME.fullmatch(name):
            raise BadSecret(f"{value!r}; allowed: {CREDENTIAL} and the name of a credential")
        if not credentials:
            return value, ""
        folder = os.environ.get(DIRECTORY)
        if not folder:
            raise BadSecret(
                f"{value!r} is brought by systemd, to the service alone: this process has no "
                f"${DIRECTORY} (LoadCredential={name}:PATH in the unit)"
            )
        return _read(Path(folder, name)), ""
    return value, ""


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SIZE + 1).decode("utf-8").strip()
    except UnicodeDecodeError as exc:
        raise BadSecret(f"{path} is not UTF-8 text") from exc
    except OSError as exc:
        raise BadSecret(f"{path} cannot be read: {exc.strerror}") from exc
    if not text:
        raise BadSecret(f"{path} is empty")
    if len(text) > MAX_SIZE or not text.isprintable():
        raise BadSecret(f"{path} holds more than one line of text; allowed: the secret alone")
    return text


def _warning(path: Path) -> str:
    is_open = path.stat().st_mode & 0o007
    return f"{path} is open to everybody on this host; chmod o-rwx {path}" if is_open else ""
