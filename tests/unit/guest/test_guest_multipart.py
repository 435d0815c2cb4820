"""The agent's incremental multipart parser, and the host's writer, against each other."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from guestkit import payload_module
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_api.guest.multipart import FilePart, Multipart

agent = payload_module("agent")
BOUNDARY = b"b0undary"


class Pieces:
    """A request whose body arrives in pieces of a given size."""

    def __init__(self, body: bytes, size: int) -> None:
        self._pieces = [body[at : at + size] for at in range(0, len(body), size)]
        self.form: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def read(self) -> Generator[None, None, bytes]:
        yield
        return self._pieces.pop(0) if self._pieces else b""

    def parse(self, boundary: bytes = BOUNDARY) -> Pieces:
        for _ in agent.Multipart(self, boundary).parse():
            pass
        return self

    def take(self, name: str) -> bytes:
        path = Path(self.files.pop(name))
        data = path.read_bytes()
        path.unlink()
        return data


def body_of(*parts: tuple[str, bytes]) -> bytes:
    whole = b"".join(
        b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return whole + b"--" + BOUNDARY + b"--\r\n"


def field(name: str, **more: str) -> str:
    extra = "".join(f'; {key}="{value}"' for key, value in more.items())
    return f'Content-Disposition: form-data; name="{name}"{extra}'


LOOKALIKES = st.sampled_from([b"\r\n", b"--", b"\r\n--b0undar", b"\r\n--", b"b0undary", b"\r"])


@given(
    content=st.lists(st.one_of(st.binary(max_size=20), LOOKALIKES), max_size=12).map(b"".join),
    value=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    size=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_any_content_in_any_pieces(content: bytes, value: str, size: int) -> None:
    if b"\r\n--" + BOUNDARY in b"\r\n" + content or BOUNDARY in value.encode():
        content, value = b"", ""
    parts = (field("filepath"), value.encode()), (field("file", filename="x"), content)
    pieces = Pieces(body_of(*parts), size).parse()
    assert pieces.form == {"filepath": value}
    assert pieces.take("file") == content


def test_file_before_its_fields_and_text_around_the_parts() -> None:
    body = b"preamble\r\n" + body_of(
        (field("file", filename='a"b') + "\r\nContent-Type: text/plain", b"data"),
        (field("filepath"), b"/x"),
    )
    pieces = Pieces(body + b"epilogue", 7).parse()
    assert (pieces.take("file"), pieces.form) == (b"data", {"filepath": "/x"})


def test_two_files_of_one_name_keep_the_last() -> None:
    parts = [(field("file", filename="x"), data) for data in (b"first", b"second")]
    assert Pieces(body_of(*parts), 64).parse().take("file") == b"second"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no boundary at all", 400),
        (body_of((field("a"), b"x"))[:-6], 400),
        (b"--" + BOUNDARY + b"\r\n" + b"X: " + b"y" * 20000, 431),
        (body_of((field("a"), b"x" * (1 << 20) + b"y")), 413),
    ],
)
def test_malformed_bodies(body: bytes, status: int) -> None:
    with pytest.raises(agent.HttpError) as caught:
        Pieces(body, 4096).parse()
    assert caught.value.status == status


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1])
async def test_host_writes_what_the_agent_reads(tmp_path: Path, size: int) -> None:
    sample = tmp_path / "sample"
    sample.write_bytes(bytes(range(251)) * (size // 251) + bytes(size % 251))
    form = Multipart({"filepath": "/tmp/näme"}, FilePart("file", "sample.bin", sample))
    async with form:
        body = b"".join([piece async for piece in form.stream()])
        headers: Any = form.headers
    assert int(headers["Content-Length"]) == len(body)
    boundary = headers["Content-Type"].split("boundary=")[1].encode()
    pieces = Pieces(body, 5000).parse(boundary)
    assert pieces.form == {"filepath": "/tmp/näme"}
    assert pieces.take("file") == sample.read_bytes()
