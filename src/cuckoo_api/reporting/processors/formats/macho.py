"""A macOS program's headers, sections, imports and signature, through LIEF."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import lief

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.processors.formats.words import Part, parts, text, wide_hex, word

MAX_ARCHITECTURES = 20
MAX_SECTIONS = 500
MAX_LIBRARIES = 500
MAX_SYMBOLS = 2_000


def describe_macho(data: bytes, notes: Notes) -> dict[str, Any]:
    """The report's ``static.macho``; empty with a note when LIEF cannot make sense of it."""
    lief.logging.disable()
    fat = lief.MachO.parse(io.BytesIO(data))
    if not isinstance(fat, lief.MachO.FatBinary) or fat.size == 0:
        notes.add("static: the file begins as a Mach-O file and is none")
        return {}
    binaries = take(
        (fat.at(number) for number in range(fat.size)), MAX_ARCHITECTURES, notes, "static.macho"
    )
    return {"architectures": [parts(PARTS, binary, notes) for binary in binaries]}


def _header(binary: Any, notes: Notes) -> dict[str, Any]:
    header = binary.header
    return {
        "cpu": word(header.cpu_type),
        "type": word(header.file_type),
        "flags": [word(flag) for flag in header.flags_list],
        "entry_point": wide_hex(binary.entrypoint) if binary.has_entrypoint else None,
        "pie": bool(binary.is_pie),
        "nx": bool(binary.has_nx),
    }


def _uuid(binary: Any, notes: Notes) -> str | None:
    return str(uuid.UUID(bytes=bytes(binary.uuid.uuid))) if binary.has_uuid else None


def _platform(binary: Any, notes: Notes) -> dict[str, str] | None:
    """What it was built for, and the oldest system that it runs on."""
    if binary.has_build_version:
        build = binary.build_version
        return {"name": word(build.platform), "minimum": _version(build.minos)}
    if binary.has_version_min:
        return {"name": word(binary.platform), "minimum": _version(binary.version_min.version)}
    return None


def _version(numbers: Iterable[int]) -> str:
    return ".".join(str(number) for number in numbers)


def _segments(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    return [
        {
            "name": text(segment.name),
            "address": wide_hex(segment.virtual_address),
            "virtual_size": segment.virtual_size,
            "size": segment.file_size,
            "protection": _protection(segment.init_protection),
        }
        for segment in take(binary.segments, MAX_SECTIONS, notes, "static.macho.segments")
    ]


def _protection(bits: int) -> str:
    return "".join(sign if bits & bit else "-" for bit, sign in ((1, "r"), (2, "w"), (4, "x")))


def _sections(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    return [
        {
            "name": text(section.name),
            "segment": text(section.segment_name),
            "address": wide_hex(section.virtual_address),
            "size": section.size,
            "entropy": round(float(section.entropy), 3),
        }
        for section in take(binary.sections, MAX_SECTIONS, notes, "static.macho.sections")
    ]


def _libraries(binary: Any, notes: Notes) -> list[str]:
    names = (text(library.name) for library in binary.libraries)
    return take(names, MAX_LIBRARIES, notes, "static.macho.libraries")


def _imports(binary: Any, notes: Notes) -> list[str]:
    return _names(binary.imported_symbols, notes, "static.macho.imports")


def _exports(binary: Any, notes: Notes) -> list[str]:
    return _names(binary.exported_symbols, notes, "static.macho.exports")


def _names(symbols: Iterable[Any], notes: Notes, what: str) -> list[str]:
    return take((text(item.name) for item in symbols if item.name), MAX_SYMBOLS, notes, what)


def _signature(binary: Any, notes: Notes) -> dict[str, Any]:
    """Whether there is a signature. It is not verified: that takes Apple's certificates."""
    signed = bool(binary.has_code_signature)
    return {"signed": signed, "size": binary.code_signature.data_size if signed else 0}


def _is_encrypted(binary: Any, notes: Notes) -> bool:
    return bool(binary.has_encryption_info and binary.encryption_info.crypt_id)


PARTS: Mapping[str, Part] = {
    "header": _header,
    "uuid": _uuid,
    "platform": _platform,
    "segments": _segments,
    "sections": _sections,
    "libraries": _libraries,
    "imports": _imports,
    "exports": _exports,
    "signature": _signature,
    "encrypted": _is_encrypted,
}
