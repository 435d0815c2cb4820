"""A Windows program's headers, sections, imports, resources and version, through LIEF.

The keys are Cuckoo 2's; ``pe_header``, ``pe_overlay`` and ``pe_authenticode`` are further ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import lief

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.filefacts import file_type
from cuckoo_api.reporting.processors.formats.authenticode import authenticode, certificates
from cuckoo_api.reporting.processors.formats.words import (
    Part,
    entropy,
    parts,
    text,
    wide_hex,
    word,
)

MAX_SECTIONS = 200
MAX_LIBRARIES = 500
MAX_SYMBOLS = 5_000
MAX_RESOURCES = 1_000
MAX_VERSION_VALUES = 200
MAX_VALUE = 1_000

_PACKERS = {
    ".aspack": "ASPack",
    ".adata": "ASPack",
    ".enigma1": "Enigma Protector",
    ".mpress1": "MPRESS",
    ".mpress2": "MPRESS",
    ".nsp0": "NsPack",
    ".nsp1": "NsPack",
    ".petite": "Petite",
    ".themida": "Themida",
    ".vmp0": "VMProtect",
    ".vmp1": "VMProtect",
    ".winlice": "WinLicense",
    "fsg!": "FSG",
    "mew": "MEW",
    "pec1": "PECompact",
    "pec2": "PECompact",
    "pecompact2": "PECompact",
    "upx0": "UPX",
    "upx1": "UPX",
    "upx!": "UPX",
}
"""Sections that packers make, by their names in lower case."""

_LANGUAGE, _SUBLANGUAGE = 0x3FF, 10
"""The two halves of a resource's language number."""


def describe_pe(data: bytes, notes: Notes) -> dict[str, Any]:
    """The report's ``static.pe_…``; empty with a note when LIEF cannot make sense of it."""
    lief.logging.disable()
    binary = lief.PE.parse(io.BytesIO(data))
    if not isinstance(binary, lief.PE.Binary):
        notes.add("static: the file begins as a Windows program and is none")
        return {}
    return parts(PARTS, binary, notes)


def _header(binary: Any, notes: Notes) -> dict[str, Any]:
    header, optional = binary.header, binary.optional_header
    return {
        "machine": word(header.machine),
        "subsystem": word(optional.subsystem),
        "characteristics": [word(flag) for flag in header.characteristics_list],
        "image_base": wide_hex(binary.imagebase),
        "entry_point": wide_hex(optional.addressof_entrypoint),
        "entry_section": _entry_section(binary),
        "checksum": wide_hex(optional.checksum),
        "checksum_right": optional.checksum in (0, binary.compute_checksum()),
        "aslr": bool(binary.is_pie),
        "nx": bool(binary.has_nx),
    }


def _entry_section(binary: Any) -> str | None:
    section = binary.section_from_rva(binary.optional_header.addressof_entrypoint)
    return None if section is None else text(section.name)


def _timestamp(binary: Any, notes: Notes) -> str:
    """Whenever the linker says it ran, in UTC."""
    when = datetime.fromtimestamp(binary.header.time_date_stamps, UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S")


def _imphash(binary: Any, notes: Notes) -> str | None:
    return str(lief.PE.get_imphash(binary, lief.PE.IMPHASH_MODE.PEFILE)) or None


def _imports(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    """Each library with its functions, those that are loaded when first called after the others."""
    found = []
    for library in take(_libraries(binary), MAX_LIBRARIES, notes, "static.pe_imports"):
        entries = take(library.entries, MAX_SYMBOLS, notes, "static.pe_imports.imports")
        found.append({"dll": text(library.name), "imports": [_import(binary, e) for e in entries]})
    return found


def _libraries(binary: Any) -> Iterator[Any]:
    yield from binary.imports
    yield from binary.delay_imports


def _import(binary: Any, entry: Any) -> dict[str, str]:
    name = f"#{entry.ordinal}" if entry.is_ordinal else text(entry.name)
    # of a function that is loaded late, the place is not told
    place = getattr(entry, "iat_address", 0)
    return {"address": wide_hex(binary.imagebase + place) if place else "", "name": name}


def _exports(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    if not binary.has_exports:
        return []
    return [
        {
            "address": wide_hex(binary.imagebase + entry.address),
            "name": text(entry.name),
            "ordinal": entry.ordinal,
        }
        for entry in take(binary.get_export().entries, MAX_SYMBOLS, notes, "static.pe_exports")
    ]


def _sections(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    return [
        {
            "name": text(section.name),
            "virtual_address": wide_hex(section.virtual_address),
            "virtual_size": wide_hex(section.virtual_size),
            "size_of_data": wide_hex(section.sizeof_raw_data),
            "entropy": round(float(section.entropy), 3),
            "flags": [
                flag.removeprefix("MEM_")
                for flag in map(word, section.characteristics_lists)
                if flag in ("MEM_EXECUTE", "MEM_READ", "MEM_WRITE")
            ],
        }
        for section in take(binary.sections, MAX_SECTIONS, notes, "static.pe_sections")
    ]


def _resources(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    if not binary.has_resources:
        return []
    return take(_walk(binary.resources), MAX_RESOURCES, notes, "static.pe_resources")


def _walk(root: Any) -> Iterator[dict[str, Any]]:
    """Type, name, language: three levels. What lies deeper belongs to no real program."""
    for kind in root.childs:
        for name in kind.childs:
            for leaf in name.childs:
                if leaf.is_data:
                    yield _resource(kind, leaf)


def _resource(kind: Any, leaf: Any) -> dict[str, Any]:
    content = bytes(leaf.content)
    return {
        "name": _resource_type(kind),
        "offset": wide_hex(leaf.offset),
        "size": wide_hex(len(content)),
        "filetype": file_type(content[:4096]),
        "language": _language(leaf.id & _LANGUAGE),
        "sublanguage": f"SUBLANG_{leaf.id >> _SUBLANGUAGE}",
    }


def _resource_type(node: Any) -> str:
    if node.has_name:
        return text(node.name)
    try:
        return f"RT_{word(lief.PE.ResourcesManager.TYPE(node.id))}"
    except ValueError:
        return str(node.id)


def _language(number: int) -> str:
    try:
        return f"LANG_{word(lief.PE.RESOURCE_LANGS(number))}"
    except ValueError:
        return f"LANG_{number}"


def _versions(binary: Any, notes: Notes) -> list[dict[str, str]]:
    manager = binary.resources_manager
    found = manager.version if isinstance(manager, lief.PE.ResourcesManager) else []
    values = (
        {"name": text(entry.key), "value": text(entry.value, MAX_VALUE)}
        for version in found
        if (info := version.string_file_info) is not None
        for language in info.children
        for entry in language.entries
    )
    return take(values, MAX_VERSION_VALUES, notes, "static.pe_versioninfo")


def _packers(binary: Any, notes: Notes) -> list[str]:
    names = (text(section.name).lower() for section in binary.sections)
    return list(dict.fromkeys(_PACKERS[name] for name in names if name in _PACKERS))


def _pdb(binary: Any, notes: Notes) -> str | None:
    found = binary.codeview_pdb
    return None if found is None else text(found.filename, MAX_VALUE)


def _overlay(binary: Any, notes: Notes) -> dict[str, Any] | None:
    """What follows the last section and is no signature; None when there is nothing."""
    content = bytes(binary.overlay)
    # of all directories, that of the signatures alone is found by its place in the file
    start = binary.cert_dir.rva - binary.overlay_offset
    if binary.cert_dir.size and 0 <= start <= len(content):
        content = content[:start] + content[start + binary.cert_dir.size :]
    if not content:
        return None
    return {
        "offset": wide_hex(binary.overlay_offset),
        "size": len(content),
        "entropy": entropy(content),
        "filetype": file_type(content[:4096]),
    }


def _count(binary: Any, notes: Notes) -> int:
    return sum(1 for _ in binary.imports)


PARTS: Mapping[str, Part] = {
    "pe_header": _header,
    "pe_timestamp": _timestamp,
    "pe_imphash": _imphash,
    "imported_dll_count": _count,
    "pe_imports": _imports,
    "pe_exports": _exports,
    "pe_sections": _sections,
    "pe_resources": _resources,
    "pe_versioninfo": _versions,
    "peid_signatures": _packers,
    "pdb_path": _pdb,
    "pe_overlay": _overlay,
    "signature": certificates,
    "pe_authenticode": authenticode,
}
"""The keys and who makes them; the order is the report's."""
