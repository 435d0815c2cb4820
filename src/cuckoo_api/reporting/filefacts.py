"""What a file is: its size, type and hashes, read once and in constant memory."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import magic
import ssdeep
import tlsh

from cuckoo_api.reporting.bounds import clip
from cuckoo_api.reporting.evidence import Input
from cuckoo_api.reporting.urls import UrlFinder

TYPE_HEAD = 1 << 20
MAX_TYPE = 1_000


def describe(source: Input) -> dict[str, Any]:
    """``size``, ``type``, hashes, ``yara`` and ``urls`` of an open file.

    The hashes of a file over the reading limit are None: those of a part would mislead. ``yara``
    is filled in by a step of its own.
    """
    digests = [hashlib.new(name, usedforsecurity=False) for name in _HASHES]
    fuzzy, locality, addresses = ssdeep.Hash(), tlsh.Tlsh(), UrlFinder()
    crc = 0
    head = b""
    for chunk in source.chunks():
        head = head or chunk[:TYPE_HEAD]
        for digest in digests:
            digest.update(chunk)
        fuzzy.update(chunk)
        locality.update(chunk)
        addresses.feed(chunk)
        crc = zlib.crc32(chunk, crc)
    addresses.finish()
    whole = not source.truncated
    return {
        "size": source.size,
        "type": file_type(head),
        **{
            name: d.hexdigest() if whole else None for name, d in zip(_HASHES, digests, strict=True)
        },
        "crc32": f"{crc:08X}" if whole else None,
        "ssdeep": fuzzy.digest() if whole else None,
        "tlsh": _digest(locality) if whole else None,
        "yara": [],
        "urls": addresses.urls,
    }


def _digest(locality: tlsh.Tlsh) -> str | None:
    """The TLSH; None for what is too short or too uniform to have one."""
    try:
        locality.final()
        return str(locality.hexdigest())
    except ValueError:
        return None


def file_type(head: bytes) -> str:
    """libmagic's words for a file that begins so."""
    if not head:
        return "empty"
    try:
        return clip(str(magic.from_buffer(head)), MAX_TYPE)
    except magic.MagicException as exc:
        return f"data (libmagic: {clip(str(exc), 200)})"


_HASHES = ("md5", "sha1", "sha256", "sha512")
