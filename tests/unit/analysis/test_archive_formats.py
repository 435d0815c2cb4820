"""What is read out of an archive: every kind, every odd entry, and whatever bytes there are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archivekit import EXE, LOCKED_7Z, Files, aes_zipped, cab, opened, rar4, rar5, written, zipped
from cuckoo_api.analysis import frames

pytestmark = pytest.mark.slow

TWO: Files = {"a.exe": EXE, "dir/b.exe": EXE * 50}

KINDS = {
    "zip, stored": zipped(TWO, compression=zipfile.ZIP_STORED),
    "zip, deflated": zipped(TWO),
    "zip, bzip2": zipped(TWO, compression=zipfile.ZIP_BZIP2),
    "zip, lzma": zipped(TWO, compression=zipfile.ZIP_LZMA),
    "7z": written(TWO, "7zip"),
    "rar 4": rar4(TWO),
    "rar 5": rar5(TWO),
    "iso": written(TWO, "iso9660"),
    "tar": written(TWO, "ustar"),
    "tar, pax": written(TWO, "pax"),
    "tar, GNU": written(TWO, "gnutar"),
    "tar.gz": written(TWO, "ustar", "gzip"),
    "tar.bz2": written(TWO, "ustar", "bzip2"),
    "tar.xz": written(TWO, "ustar", "xz"),
    "tar.zst": written(TWO, "ustar", "zstd"),
    "tar.lz4": written(TWO, "ustar", "lz4"),
    "tar.Z": written(TWO, "ustar", "compress"),
    "tar.lz": written(TWO, "ustar", "lzip"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_members(path: Path, kind: str) -> None:
    told = opened(path, KINDS[kind])
    assert sorted(told.members) == sorted(TWO.items())
    assert told.notes == []


def test_a_cabinet_gives_its_members(path: Path) -> None:
    files = {"a.exe": EXE, "b.exe": EXE[::-1]}
    assert opened(path, cab(files)).members == list(files.items())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_single_compressed_file_is_a_member_without_a_name(path: Path, pack: object) -> None:
    told = opened(path, pack(EXE))  # type: ignore[operator]  # each takes and gives bytes
    assert (told.members, told.notes) == ([("", EXE)], [])


@pytest.mark.parametrize("name", ["[Content_Types].xml", "META-INF/MANIFEST.MF"])
def test_a_document_or_program_packed_as_a_zip_file_is_no_archive(path: Path, name: str) -> None:
    told = opened(path, zipped({"first": EXE, name: b"<Types/>"}))
    assert (told.ended, told.members) == (frames.DOCUMENT, [])


# -- encrypted ----------------------------------------------------------------------------------


ENCRYPTED = {
    "zip, AES-256 of pyzipper": aes_zipped(TWO, "secret"),
    "zip, AES-128": written(TWO, "zip", options="encryption=aes128", passphrase="secret"),
    "zip, ZipCrypto": written(TWO, "zip", options="encryption=zipcrypt", passphrase="secret"),
}


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_the_right_one_of_several_passwords_opens_it(path: Path, kind: str) -> None:
    told = opened(path, ENCRYPTED[kind], "infected", "ж", "secret", "virus")
    assert sorted(told.members) == sorted(TWO.items())
    assert told.notes == []


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_without_the_password_each_member_is_said_to_be_encrypted(path: Path, kind: str) -> None:
    told = opened(path, ENCRYPTED[kind], "infected", "virus")
    assert told.members == []
    assert sorted(told.notes) == [
        f"'{name}' is encrypted, and no known password opens it" for name in sorted(TWO)
    ]


def test_a_7z_file_that_is_encrypted_is_said_to_be_so(path: Path) -> None:
    told = opened(path, LOCKED_7Z, "infected")
    assert told.members == []
    assert told.notes == ["'a.exe' is encrypted, and only zip files can be decrypted"]


def test_what_is_not_encrypted_comes_out_beside_what_is(path: Path) -> None:
    plain, locked = zipped({"plain.exe": EXE}), aes_zipped({"locked.exe": EXE}, "secret")
    told = opened(path, _joined(plain, locked), "infected")
    assert told.members == [("plain.exe", EXE)]
    assert told.notes == ["'locked.exe' is encrypted, and no known password opens it"]


def test_members_with_passwords_of_their_own_all_come_out_once(path: Path) -> None:
    one, two = aes_zipped({"1.exe": EXE}, "one"), aes_zipped({"2.exe": EXE}, "two")
    told = opened(path, _joined(one, two), "two", "one")
    assert sorted(told.members) == [("1.exe", EXE), ("2.exe", EXE)]
    assert told.notes == []


def _joined(first: bytes, second: bytes) -> bytes:
    """Two zip files as one: the entries of both under one list at the end."""
    sizes = []
    lists = []
    bodies = []
    for content in (first, second):
        end = content.rindex(b"PK\x05\x06")
        start = int.from_bytes(content[end + 16 : end + 20], "little")
        bodies.append(content[:start])
        lists.append(bytearray(content[start:end]))
        sizes.append(start)
    lists[1][42:46] = sizes[0].to_bytes(4, "little")  # where the second one's member begins
    listed = b"".join(lists)
    end_record = bytearray(first[first.rindex(b"PK\x05\x06") :])
    end_record[8:20] = (
        (2).to_bytes(2, "little") * 2
        + len(listed).to_bytes(4, "little")
        + sum(sizes).to_bytes(4, "little")
    )
    return b"".join(bodies) + listed + bytes(end_record)


# -- hostile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/cron.d/x",
        "a/../../x",
        "/etc/passwd",
        "..",
        "C:\\Windows\\x.exe",
        "..\\..\\x.exe",
        "\\\\host\\share\\x.exe",
    ],
)
def test_a_name_that_leads_out_of_the_archive_is_left_out(path: Path, name: str) -> None:
    told = opened(path, zipped({name: EXE, "good.exe": EXE}))
    assert told.members == [("good.exe", EXE)]
    [note] = told.notes
    assert note.endswith("was left out: its name leads out of the archive")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a FIFO"),
    ],
)
def test_what_is_no_file_is_named_and_never_followed(
    path: Path, tmp_path: Path, kind: bytes, word: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        odd = tarfile.TarInfo("odd")
        odd.type, odd.linkname, odd.devmajor, odd.devminor = kind, str(secret), 1, 3
        archive.addfile(odd)
        good = tarfile.TarInfo("good.exe")
        good.size = len(EXE)
        archive.addfile(good, io.BytesIO(EXE))
    told = opened(path, made.getvalue())
    assert told.members == [("good.exe", EXE)]
    assert told.notes == [f"'odd' was left out: it is {word}, not a file"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "secret"]


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_link_in_a_zip_file_is_left_out(path: Path, encrypted: bool) -> None:
    made = io.BytesIO()
    info = zipfile.ZipInfo("odd")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    content = made.getvalue()
    if encrypted:
        content = _joined(content, aes_zipped({"good.exe": EXE}, "infected"))
    told = opened(path, content, "infected")
    assert told.members == ([("good.exe", EXE)] if encrypted else [])
    assert told.notes == ["'odd' was left out: it is a link, not a file"]


@pytest.mark.parametrize("kind", ["zip, deflated", "tar.gz", "rar 4", "tar", "rar 5"])
def test_of_a_truncated_archive_the_whole_members_are_taken(path: Path, kind: str) -> None:
    content = KINDS[kind]
    told = opened(path, content[: len(content) * 2 // 3], kind=())
    assert all(TWO[name] == data for name, data in told.members)
    assert len(told.members) < 2
    assert told.notes


@pytest.mark.parametrize("content", [EXE, b"", b"just text\n" * 100])
def test_what_only_claims_to_be_compressed_is_no_member_of_itself(
    path: Path, content: bytes
) -> None:
    told = opened(path, content, kind=["tar", "raw"])
    assert told.members == []


def test_a_member_whose_content_was_changed_is_not_taken(path: Path) -> None:
    content = zipped({"a.exe": EXE, "b.exe": EXE[::-1]}, compression=zipfile.ZIP_STORED)
    at = content.index(EXE) + 100
    told = opened(path, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert told.members == [("b.exe", EXE[::-1])]
    [note] = told.notes
    assert note.startswith("'a.exe' cannot be read: ")


@given(
    content=st.binary(max_size=400),
    kind=st.sampled_from(["zip", "7zip", "rar", "rar5", "cab", "iso9660", "tar"]),
)
@settings(max_examples=60, deadline=None)
def test_any_bytes_come_to_an_orderly_end(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    opened(tmp_path_factory.getbasetemp() / "any", content, "x", kind=[kind])


@given(data=st.data(), kind=st.sampled_from(sorted({*KINDS, *ENCRYPTED})))
@settings(max_examples=60, deadline=None)
def test_a_damaged_archive_comes_to_an_orderly_end(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    content = bytearray((KINDS | ENCRYPTED)[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        # the first bytes stay: by them it is known for what it is
        at = data.draw(st.integers(16, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    formats = {"zip": "zip", "7z": "7zip", "iso": "iso9660"}.get(kind.split(",")[0].split()[0])
    formats = formats or ("rar5" if kind == "rar 5" else "rar" if kind == "rar 4" else "tar")
    opened(path, bytes(content), "secret", kind=[formats])
