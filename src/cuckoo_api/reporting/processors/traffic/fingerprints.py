"""Fingerprints of TLS programs, by which the same ones are known elsewhere.

JA3 hashes what a hello says in the order in which it is said; JA4 what is said in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

SERVER_NAME, ALPN = 0x0000, 0x0010
_VERSIONS = {0x304: "13", 0x303: "12", 0x302: "11", 0x301: "10", 0x300: "s3", 0x002: "s2"}
_NOTHING = "0" * 12


def ja3(
    version: int,
    ciphers: Iterable[int],
    extensions: Iterable[int],
    groups: Iterable[int],
    points: Iterable[int],
) -> str:
    """The MD5 that names a client."""
    return _md5(str(version), *map(_decimal, (ciphers, extensions, groups, points)))


def ja3s(version: int, ciphers: Iterable[int], extensions: Iterable[int]) -> str:
    """The MD5 that names a server, as it answers this client."""
    return _md5(str(version), _decimal(ciphers), _decimal(extensions))


def ja4(
    version: int,
    ciphers: Iterable[int],
    extensions: Sequence[int],
    signatures: Iterable[int],
    alpn: Sequence[bytes],
) -> str:
    """The name of a client whose first part can be read."""
    known = _without_grease(ciphers)
    kinds = _without_grease(extensions)
    said = [kind for kind in kinds if kind not in (SERVER_NAME, ALPN)]
    words = _hexadecimal(sorted(said))
    algorithms = _hexadecimal(_without_grease(signatures))
    head = f"t{_VERSIONS.get(version, '00')}{'d' if SERVER_NAME in kinds else 'i'}"
    head += f"{min(len(known), 99):02}{min(len(kinds), 99):02}{_ends(alpn[0] if alpn else b'')}"
    offers = _sha256(_hexadecimal(sorted(known)))
    return f"{head}_{offers}_{_sha256(f'{words}_{algorithms}' if words and algorithms else words)}"


def _ends(name: bytes) -> str:
    """The first and the last sign of a protocol's name."""
    if not name:
        return "00"
    first, last = chr(name[0]), chr(name[-1])
    if first.isascii() and first.isalnum() and last.isascii() and last.isalnum():
        return first + last
    return name.hex()[0] + name.hex()[-1]


def _without_grease(numbers: Iterable[int]) -> list[int]:
    """Without the numbers that mean nothing and are put in by chance, 0x0a0a to 0xfafa."""
    return [n for n in numbers if not (n & 0x0F0F == 0x0A0A and n >> 8 == n & 0xFF)]


def _decimal(numbers: Iterable[int]) -> str:
    return "-".join(map(str, _without_grease(numbers)))


def _hexadecimal(numbers: Iterable[int]) -> str:
    return ",".join(f"{number:04x}" for number in numbers)


def _md5(*fields: str) -> str:
    return hashlib.md5(",".join(fields).encode(), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else _NOTHING
