"""An ELF file's headers, sections, imports and symbols, through LIEF."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import lief

from cuckoo_api.reporting.bounds import Notes, clip, take

MAX_SECTIONS = 200
MAX_SEGMENTS = 100
MAX_LIBRARIES = 200
MAX_SYMBOLS = 2_000
MAX_NAME = 256


def describe_elf(data: bytes, notes: Notes) -> dict[str, Any]:
    """The report's ``static.elf``; empty with a note when LIEF cannot make sense of it."""
    lief.logging.disable()
    binary = lief.ELF.parse(io.BytesIO(data))
    if not isinstance(binary, lief.ELF.Binary):
        notes.add("static: the file begins as an ELF file and is none")
        return {}
    header = binary.header
    return {
        "header": {
            "class": _word(header.identity_class),
            "data": _word(header.identity_data),
            "os_abi": _word(header.identity_os_abi),
            "type": _word(header.file_type),
            "machine": _word(header.machine_type),
            "entry_point": hex(header.entrypoint),
            "flags": hex(header.processor_flag),
            "pie": bool(binary.is_pie),
            "nx": bool(binary.has_nx),
            "static": not binary.has_interpreter and not list(binary.libraries),
        },
        "interpreter": _text(binary.interpreter) if binary.has_interpreter else None,
        "sections": [
            {
                "name": _text(section.name),
                "type": _word(section.type),
                "address": hex(section.virtual_address),
                "offset": section.file_offset,
                "size": section.size,
                "entropy": round(float(section.entropy), 3),
                "flags": [_word(flag) for flag in section.flags_list],
            }
            for section in take(binary.sections, MAX_SECTIONS, notes, "static.elf.sections")
        ],
        "segments": [
            {
                "type": _word(segment.type),
                "address": hex(segment.virtual_address),
                "size": segment.virtual_size,
                "flags": _word(segment.flags),
            }
            for segment in take(binary.segments, MAX_SEGMENTS, notes, "static.elf.segments")
        ],
        "libraries": [
            _text(name)
            for name in take(binary.libraries, MAX_LIBRARIES, notes, "static.elf.libraries")
        ],
        "imports": _names(binary.imported_symbols, notes, "static.elf.imports"),
        "exports": _names(binary.exported_symbols, notes, "static.elf.exports"),
        "symbols": _names(binary.symtab_symbols, notes, "static.elf.symbols"),
    }


def _names(symbols: Iterable[Any], notes: Notes, what: str) -> list[str]:
    return take((_text(item.name) for item in symbols if item.name), MAX_SYMBOLS, notes, what)


def _text(name: str | bytes) -> str:
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    # LIEF hands on what is no character at all
    return clip(name.encode("utf-8", "backslashreplace").decode(), MAX_NAME)


def _word(value: object) -> str:
    """The last part of an enumeration's name; a number that has none stays a number."""
    return str(value).rpartition(".")[2].removeprefix("SHT_").rstrip("_")
