"""What a file looks like that was not even run; on every platform."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cuckoo_api.reporting.signatures.base import Facts, Mark, Signature, mark

PACKED = 7.2
"""Bits for each byte: code that is not packed stays well below."""
LONG_LINE = 5_000


class YaraMatch(Signature):
    name = "yara_match"
    description = "A YARA rule matches a file or the memory of a process"
    severity = 2

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for file in (facts.file, *facts.dropped, *facts.procmemory):
            for match in file.yara:
                yield mark("yara", f"{match.get('name')} in {file.filepath or file.name}")


class PackedProgram(Signature):
    name = "packed_program"
    description = "The program is packed or encrypted"
    severity = 2
    ttp = ("T1027.002",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for packer in facts.static.get("peid_signatures") or ():
            yield mark("packer", str(packer))
        for section in _code(facts.static):
            if float(section.get("entropy") or 0) > PACKED:
                yield mark("section", f"{section.get('name')}: entropy {section['entropy']}")


class BrokenSignature(Signature):
    name = "broken_signature"
    description = "The program was changed after it had been signed"
    severity = 3
    ttp = ("T1036.001",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        verdict = str((facts.static.get("pe_authenticode") or {}).get("verdict", ""))
        if "BAD_DIGEST" in verdict:
            yield mark("signature", verdict)


class ObfuscatedScript(Signature):
    name = "obfuscated_script"
    description = "The script hides what it does"
    severity = 2
    ttp = ("T1027.010",)

    def marks(self, facts: Facts) -> Iterator[Mark]:
        script = facts.static.get("script") or {}
        notable = script.get("notable") or {}
        if "runs_encoded_powershell" in notable:
            yield mark("script", "starts PowerShell with an encoded command")
        if not {"evaluates_text", "decodes_base64"} & set(notable):
            return
        if script.get("encoded_blocks"):
            yield mark("script", f"{script['encoded_blocks']} long runs of base64 that it decodes")
        if int(script.get("longest_line") or 0) > LONG_LINE:
            yield mark("script", f"a line of {script['longest_line']} characters")


class DoubleExtension(Signature):
    name = "double_extension"
    description = "The file's name pretends that it is a document or a picture"
    severity = 2
    ttp = ("T1036.007",)

    _name = re.compile(
        r"\.(?:pdf|docx?|xlsx?|pptx?|rtf|txt|csv|jpe?g|png|gif|mp[34]|zip)[\s_]*"
        r"\.(?:exe|scr|com|pif|bat|cmd|js|jse|vbs|vbe|wsf|hta|lnk|ps1|sh|elf|desktop|run|py|jar)$",
        re.IGNORECASE,
    )
    _reversed = re.compile("[\u202a-\u202e\u2066-\u2069]")

    def marks(self, facts: Facts) -> Iterator[Mark]:
        for file in (facts.file, *facts.dropped):
            if self._name.search(file.name) or self._reversed.search(file.name):
                yield mark("file", file.name)


def _code(static: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections that hold code, of a Windows program and of an ELF file."""
    for section in static.get("pe_sections") or ():
        if "EXECUTE" in (section.get("flags") or ()):
            yield section
    for section in (static.get("elf") or {}).get("sections") or ():
        if "EXECINSTR" in (section.get("flags") or ()):
            yield section
