"""The lines of the protocol, and the connection that cuts a stream into them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuckoo_api.results.connection import BLOCK, Connection
from cuckoo_api.results.protocol import (
    FOLDERS,
    MAX_LINE,
    Command,
    Refused,
    parse_command,
    parse_destination,
    parse_filepath,
    parse_pids,
)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"LOG\n", Command("LOG", None)),
        (b"LOG\r\n", Command("LOG", None)),
        (b"BSON 2044\n", Command("BSON", 2044)),
        (b"FILE\n", Command("FILE", 1)),
        (b"FILE 2\n", Command("FILE", 2)),
    ],
)
def test_commands(line: bytes, command: Command) -> None:
    assert parse_command(line) == command


@pytest.mark.parametrize(
    "line",
    [b"\n", b"log\n", b"FILE 3\n", b"FILE -2\n", b"FILE 2 2\n", b"BSON\n", b"BSON 0\n",
     b"BSON 4294967296\n", b"BSON ../1\n", b"REPORT\n", b"GET / HTTP/1.1\r\n", b"\xff\n",
     "BSON ٣\n".encode(), b"LOG\0\n"],
)  # fmt: skip
def test_what_is_no_command(line: bytes) -> None:
    with pytest.raises(Refused):
        parse_command(line)


@pytest.mark.parametrize(
    ("line", "destination"),
    [
        (b"shots/0001.jpg\n", "shots/0001.jpg"),
        (b"files/0123456789abcdef_a b.exe\n", "files/0123456789abcdef_a b.exe"),
        ("files/häßlich\u00a0日本.docx\n".encode(), "files/häßlich\u00a0日本.docx"),
        (b"memory\\2044-1.dmp\n", "memory/2044-1.dmp"),  # as Cuckoo 2's analyzer for Windows
        (b"logs/trace.strace\n", "logs/trace.strace"),
        (b"buffer/" + b"a" * 255 + b"\n", "buffer/" + "a" * 255),
    ],
)
def test_destinations(line: bytes, destination: str) -> None:
    assert parse_destination(line) == destination


@pytest.mark.parametrize(
    "text",
    ["", "files", "files/", "/files/a", "/etc/passwd", "../a", "files/..", "files/.", "files/../a",
     "files\\..\\a", "files/a/b", "files//a", "./files/a", "files/.hidden", "files/a:b", "C:\\a",
     "files/a\0b", "files/a\x1b[2J", "files/a\x85b", "files/a\u2028b", "files/a\rb", "FILES/a",
     "reports/report.json", "analysis.log", "logs/1.bson", "logs/.strace", "logs/../a.strace",
     "logs/a.strace.sh", "files/" + "a" * 256, "files/" + "ä" * 128],
)  # fmt: skip
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(Refused):
        parse_destination(text.encode() + b"\n")
    with pytest.raises(Refused):
        parse_destination(b"files/\xff\n")


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)).map(
    lambda tail: b"files/" + tail
) | st.binary(max_size=80))  # fmt: skip
def test_no_destination_leads_elsewhere(line: bytes) -> None:
    try:
        destination = parse_destination(line)
    except Refused:
        return
    folder, name = destination.split("/")
    assert folder in FOLDERS | {"logs"}
    assert name not in ("", ".", "..")
    assert not set(name) & {"\0", "\n", "\r", ":", "\\"}


@given(st.binary(max_size=100))
def test_any_command_and_pids_are_parsed_or_refused(line: bytes) -> None:
    for parse in (parse_command, parse_pids):
        try:
            result = parse(line)
        except Refused:
            continue
        assert isinstance(result, Command) or all(0 <= pid < 10**10 for pid in result)


@given(st.binary(max_size=100))
def test_a_guest_path_may_be_any_bytes(path: bytes) -> None:
    known = parse_filepath(path + b"\n")
    assert known is None or json.loads(json.dumps(known)) == known
    assert parse_filepath(b"C:\\x\xed\xa0\x80.exe\r\n") == "C:\\x\\xed\\xa0\\x80.exe"


def test_pids() -> None:
    assert parse_pids(b"\n") == ()
    assert parse_pids(b"12  34\r\n") == (12, 34)
    for line in (b"1,2\n", b"-1\n", b"1 " * 65 + b"\n", b"12345678901\n", "٣\n".encode()):
        with pytest.raises(Refused):
            parse_pids(line)


class Wire(asyncio.Transport):
    """Delivers a stream in given pieces, and stops when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def received(data: bytes, sizes: Iterator[int], lines: int) -> list[bytes]:
    """What a reader of some lines, and then the rest, gets of ``data``."""

    async def run() -> list[bytes]:
        wire = Wire()
        connection = Connection(lambda _: None)
        connection.connection_made(wire)
        reading = asyncio.create_task(read(connection))
        sent = 0
        while sent < len(data) and not reading.done():
            if not wire.paused:
                space = connection.get_buffer(-1)
                piece = data[sent : sent + min(len(space), next(sizes))]
                space[: len(piece)] = piece
                connection.buffer_updated(len(piece))
                sent += len(piece)
                assert connection.waiting <= BLOCK
            await asyncio.sleep(0)
        connection.eof_received()
        return await reading

    async def read(connection: Connection) -> list[bytes]:
        parts = [await connection.line() for _ in range(lines)]
        while part := await connection.read():
            parts[lines:] = [b"".join([*parts[lines:], part])]
        return parts

    return asyncio.run(run())


@settings(max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=1), st.binary(max_size=300))
def test_lines_do_not_depend_on_how_they_arrive(sizes: list[int], rest: bytes) -> None:
    def forever() -> Iterator[int]:
        while True:
            yield from sizes

    lines = [b"FILE 2\n", b"files/a\n", b"\n"]
    assert received(b"".join(lines) + rest, forever(), 3) == [*lines, *([rest] if rest else [])]


def test_a_full_buffer_stops_the_sender_and_nothing_is_lost() -> None:
    data = b"line\n" + bytes(range(256)) * (BLOCK // 64)
    assert received(data, iter([BLOCK] * 9), 1) == [b"line\n", data[5:]]


@pytest.mark.parametrize("size", [MAX_LINE, MAX_LINE + 1, BLOCK * 3])
def test_a_line_is_bounded(size: int) -> None:
    line = b"a" * (size - 1) + b"\n"
    if size <= MAX_LINE:
        assert received(line, iter([BLOCK] * 9), 1) == [line]
        return
    with pytest.raises(Refused, match="more than 4096 bytes"):
        received(line, iter([BLOCK] * 9), 1)


def test_a_line_that_does_not_end() -> None:
    with pytest.raises(Refused):
        received(b"FILE", iter([4]), 1)
    with pytest.raises(EOFError):
        received(b"", iter([]), 1)
