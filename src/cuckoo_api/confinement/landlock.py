"""Landlock: the files that a process may still open, and whom it may still signal."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

from cuckoo_api.confinement.kernel import ADDRESS, buffer, call

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_WANT_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 1 << 5, 1 << 7, 1 << 8
_TRUNCATE = 1 << 14
_FIRST = (1 << 13) - 1
"""All rights that the first version knows."""
_ADDED = {2: 1 << 13, 3: _TRUNCATE, 5: 1 << 15}
"""Rights that later versions know: to move between folders, to truncate, to control devices."""
_NETWORK = (4, 0b11)
"""Since when TCP can be refused, to those that bind and those that connect."""
_SCOPES = (6, 0b11)
"""Since when abstract sockets and signals of others can be."""

READ = _READ_FILE | _READ_DIR
WRITE = READ | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
DEVICES = ("/dev/null", "/dev/urandom")


def version() -> int:
    """What the running kernel offers; 0 where it is too old or was told not to."""
    try:
        return call(_CREATE, 0, 0, _WANT_VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Leave this process these files and folders, with all below them; False where it cannot be.

    A path that is not there is left out. Links in it are followed now, and never again. Needs
    ``no_new_privs``. Raises OSError.
    """
    known = version()
    if not known:
        return False
    files = _FIRST | sum(right for since, right in _ADDED.items() if since <= known)
    network = _NETWORK[1] if known >= _NETWORK[0] else 0
    scopes = _SCOPES[1] if known >= _SCOPES[0] else 0
    # a kernel takes a longer attribute than it knows when the rest is zeros
    attribute = buffer(struct.pack("=QQQ", files, network, scopes))
    rules = call(_CREATE, ADDRESS(attribute), len(attribute), 0)
    try:
        for paths, rights in ((readable, READ), (writable, WRITE)):
            for path in paths:
                _allow(rules, path, rights & files)
        for path in DEVICES:
            _allow(rules, path, _READ_FILE | _WRITE_FILE)
        call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)
    return True


def _allow(rules: int, path: str, rights: int) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                rights &= _OF_FILES
            rule = buffer(struct.pack("=Qi", rights, handle))
            call(_ADD_RULE, rules, _PATH_BENEATH, ADDRESS(rule), 0)
        finally:
            os.close(handle)
