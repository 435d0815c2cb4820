"""What the process that takes an archive apart is told, and the frames that it answers with.

A frame is a letter, a length, and so many bytes.
"""

from __future__ import annotations

import struct

import msgspec

HEADER = struct.Struct(">cI")
BLOCK = 64 << 10
MAX_TEXT = 4096
"""Bytes of a name or a note in one frame."""

MEMBER, DATA, END = b"m", b"d", b"e"
"""A member's name, some of its bytes, and that they were all: it is whole."""
BROKEN = b"x"
"""The member that was begun will not end; the reason, or nothing where it comes again."""
NOTE = b"n"
"""A sentence about something that was left out."""
DOCUMENT = b"p"
"""This is no archive but a program or document that is packed like one."""
DONE = b"z"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One archive, and what may be used for it."""

    path: str
    formats: list[str]
    """libarchive's names of what may be read; nothing else is tried."""
    filters: list[str]
    passwords: list[str]
    parent: int
    """The process that must be alive for this one to go on."""
    memory: int
    cpu: int
