"""``conf/tokens.conf``: tokens with names and rights. What a token is, nothing here keeps."""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cuckoo_api.model.errors import BadInput, ConfigError, Conflict, NotFound
from cuckoo_api.model.task import now_text
from cuckoo_api.settings.ini import Findings, IniFile
from cuckoo_api.settings.init import default_conf

FILE = "tokens.conf"
MAIN = "api_token"
"""The name of the token in cuckoo.conf."""
MAX_RATE = 1_000_000
KEYS = ("sha256", "rights", "rate", "burst", "added")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Rights(enum.StrEnum):
    """What a token may do. Each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def cover(self, needed: Rights) -> bool:
        """Whether they are enough."""
        return _ORDER[self] >= _ORDER[needed]


_ORDER = {rights: number for number, rights in enumerate(Rights)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as far as it is known here."""

    name: str
    digest: bytes = field(repr=False)
    rights: Rights = Rights.SUBMIT
    rate: int = 0
    """Requests a minute; 0: no limit."""
    burst: int = 0
    """How many of them may come at once; 0: a whole minute's."""
    added: str = ""


def digest(token: str | bytes) -> bytes:
    """What a token is known by."""
    data = token.encode("utf-8", "surrogateescape") if isinstance(token, str) else token
    return hashlib.sha256(data).digest()


# -- reading --------------------------------------------------------------------------------------


def read_tokens(cwd: Path, findings: Findings) -> tuple[Token, ...]:
    """The tokens of a working directory; none where it has no such file."""
    file = IniFile(cwd / "conf" / FILE, f"conf/{FILE}", findings)
    tokens = tuple(_token(file, name) for name in file.sections)
    file.finish()
    return tokens


def stamp(cwd: Path) -> tuple[int, int, int] | None:
    """Another one when the file is another, or was written to."""
    try:
        found = (cwd / "conf" / FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _token(file: IniFile, name: str) -> Token:
    if not _is_name(name):
        file.fault(name, "", f"no name for a token; allowed: {_NAMES}")
    shown = file.text(name, "sha256").lower()
    if not _DIGEST.fullmatch(shown):
        # not repeated: somebody may have put the token itself there
        file.fault(name, "sha256", "no SHA-256; allowed: what 'cuckoo token add' writes")
        shown = "00" * 32
    return Token(
        name=name,
        digest=bytes.fromhex(shown),
        rights=Rights(file.choice(name, "rights", Rights.SUBMIT, tuple(Rights))),
        rate=file.number(name, "rate", 0, low=0, high=MAX_RATE),
        burst=file.number(name, "burst", 0, low=0, high=MAX_RATE),
        added=file.text(name, "added"),
    )


_NAMES = f"1 to 64 letters, digits, '.', '_' and '-', but not {MAIN!r}"


def _is_name(name: str) -> bool:
    return name != MAIN and _NAME.fullmatch(name) is not None


# -- writing --------------------------------------------------------------------------------------


def add_token(
    cwd: Path, name: str, *, rights: Rights = Rights.SUBMIT, rate: int = 0, burst: int = 0
) -> str:
    """Make a token; this is the only time that it is seen."""
    if not _is_name(name):
        raise BadInput(f"{name!r} is no name for a token; allowed: {_NAMES}")
    if not (0 <= rate <= MAX_RATE and 0 <= burst <= MAX_RATE):
        raise BadInput(f"rate, burst: allowed are whole numbers from 0 to {MAX_RATE}")
    token = secrets.token_hex(32)

    def added(text: str) -> str:
        return (
            f"{text.rstrip()}\n\n[{name}]\nsha256 = {digest(token).hex()}\nrights = {rights}\n"
            f"rate = {rate}\nburst = {burst}\nadded = {now_text()}\n"
        ).lstrip()

    with _changing(cwd) as (names, rewrite):
        if name in names:
            raise Conflict(f"there is a token {name!r} already; revoke it first")
        rewrite(added)
    return token


def revoke_token(cwd: Path, name: str) -> None:
    """Forget a token. NotFound where there is none of that name."""
    # its heading, and what follows up to the next section or comment: that one is not its own
    section = re.compile(rf"^\[{re.escape(name)}\].*\n(?:(?![\[#;]).*\n?)*", re.MULTILINE)
    with _changing(cwd) as (names, rewrite):
        if name not in names:
            raise NotFound(f"there is no token {name!r}; there is {', '.join(names) or 'none'}")
        rewrite(lambda text: section.sub("", text))


Rewrite = Callable[[Callable[[str], str]], None]


@contextmanager
def _changing(cwd: Path) -> Iterator[tuple[list[str], Rewrite]]:
    """The names that are there, and a way to change the file; nobody else changes it meanwhile."""
    folder = os.open(cwd / "conf", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        findings = Findings()
        names = [token.name for token in read_tokens(cwd, findings)]
        if findings.faults:
            raise ConfigError(findings.faults)
        yield names, lambda change: _rewrite(cwd / "conf" / FILE, change)
        os.fsync(folder)
    finally:
        os.close(folder)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Put a new file in the old one's place: a reader finds the one or the other, whole."""
    text = path.read_text(encoding="utf-8") if path.is_file() else default_conf(FILE)
    new = path.with_name(f".{FILE}.new")
    new.unlink(missing_ok=True)  # what a crash may have left
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        if os.geteuid() == 0:
            owner = path.parent.stat()  # root may do this for the server's own user
            os.fchown(handle, owner.st_uid, owner.st_gid)
        file.write(change(text))
        file.flush()
        os.fsync(handle)
    new.replace(path)
