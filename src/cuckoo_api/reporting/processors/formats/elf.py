"""An ELF file's headers, sections, imports and symbols, through LIEF."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import lief

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.processors.formats.words import Part, parts, text, word

MAX_SECTIONS = 200
MAX_SEGMENTS = 100
MAX_LIBRARIES = 200
MAX_SYMBOLS = 2_000


def describe_elf(data: bytes, notes: Notes) -> dict[str, Any]:
    """The report's ``static.elf``; empty with a note when LIEF cannot make sense of it."""
    lief.logging.disable()
    binary = lief.ELF.parse(io.BytesIO(data))
    if not isinstance(binary, lief.ELF.Binary):
        notes.add("static: the file begins as an ELF file and is none")
        return {}
    return parts(PARTS, binary, notes)


def _header(binary: Any, notes: Notes) -> dict[str, Any]:
    header = binary.header
    return {
        "class": word(header.identity_class),
        "data": word(header.identity_data),
        "os_abi": word(header.identity_os_abi),
        "type": word(header.file_type),
        "machine": word(header.machine_type),
        "entry_point": hex(header.entrypoint),
        "flags": hex(header.processor_flag),
        "pie": bool(binary.is_pie),
        "nx": bool(binary.has_nx),
        "static": not binary.has_interpreter and not list(binary.libraries),
    }


def _interpreter(binary: Any, notes: Notes) -> str | None:
    return text(binary.interpreter) if binary.has_interpreter else None


def _sections(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    return [
        {
            "name": text(section.name),
            "type": word(section.type).removeprefix("SHT_"),
            "address": hex(section.virtual_address),
            "offset": section.file_offset,
            "size": section.size,
            "entropy": round(float(section.entropy), 3),
            "flags": [word(flag) for flag in section.flags_list],
        }
        for section in take(binary.sections, MAX_SECTIONS, notes, "static.elf.sections")
    ]


def _segments(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    return [
        {
            "type": word(segment.type),
            "address": hex(segment.virtual_address),
            "size": segment.virtual_size,
            "flags": word(segment.flags),
        }
        for segment in take(binary.segments, MAX_SEGMENTS, notes, "static.elf.segments")
    ]


def _libraries(binary: Any, notes: Notes) -> list[str]:
    names = (text(name) for name in binary.libraries)
    return take(names, MAX_LIBRARIES, notes, "static.elf.libraries")


def _imports(binary: Any, notes: Notes) -> list[str]:
    return _names(binary.imported_symbols, notes, "static.elf.imports")


def _exports(binary: Any, notes: Notes) -> list[str]:
    return _names(binary.exported_symbols, notes, "static.elf.exports")


def _symbols(binary: Any, notes: Notes) -> list[str]:
    return _names(binary.symtab_symbols, notes, "static.elf.symbols")


def _names(symbols: Iterable[Any], notes: Notes, what: str) -> list[str]:
    return take((text(item.name) for item in symbols if item.name), MAX_SYMBOLS, notes, what)


PARTS: Mapping[str, Part] = {
    "header": _header,
    "interpreter": _interpreter,
    "sections": _sections,
    "segments": _segments,
    "libraries": _libraries,
    "imports": _imports,
    "exports": _exports,
    "symbols": _symbols,
}
"""The keys and who makes them; the order is the report's."""
