"""System calls that Python does not offer. Each raises OSError as the kernel refuses."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

ADDRESS = ctypes.addressof


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: int) -> int:
    """A system call by its number. Pointers are given as addresses."""
    result: int = _libc().syscall(*(ctypes.c_long(value) for value in (number, *arguments)))
    return _checked(result, f"system call {number}")


def prctl(option: int, *arguments: int) -> int:
    """One of prctl's many; those arguments that are not given are 0."""
    given = (*arguments, 0, 0, 0, 0)[:4]
    result: int = _libc().prctl(option, *(ctypes.c_ulong(value) for value in given))
    return _checked(result, f"prctl({option})")


def buffer(data: bytes) -> Any:
    """Bytes at an address that stays, for as long as the buffer is held."""
    return ctypes.create_string_buffer(data, len(data))


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
