"""What the analyzer reads out of a trace about written files."""

from __future__ import annotations

from pathlib import Path

import pytest
from guestkit import payload_module

DroppedFiles = payload_module("droppedfiles").DroppedFiles


def paths_of(trace: str, *, step: int = 0) -> list[str]:
    files = DroppedFiles(["/tmp/sample"])
    files.cwd = "/work"
    data = trace.encode("latin-1")
    for at in range(0, len(data), step or len(data)):
        files.feed(data[at : at + (step or len(data))])
    return list(files.paths())


LINES = {
    'openat(AT_FDCWD</w>, "a", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 3</w/a>': "/w/a",
    'openat(AT_FDCWD</w>, "/abs/../x", O_RDWR <unfinished ...>': "/x",
    'openat(5</d>, "in-dir", O_WRONLY|O_CREAT, 0666) = 3</d/in-dir>': "/d/in-dir",
    'openat2(AT_FDCWD</w>, "b", {flags=O_WRONLY|O_CREAT, mode=0600}, 24) = 3': "/w/b",
    'open("/o", O_RDWR|O_CREAT, 0600) = 3</o>': "/o",
    'creat("/c", 0600) = 3</c>': "/c",
    'rename("/a", "/b") = 0': "/b",
    'renameat2(AT_FDCWD</w>, "a", AT_FDCWD</v>, "r", RENAME_NOREPLACE) = 0': "/v/r",
    'linkat(AT_FDCWD</w>, "a", AT_FDCWD</w>, "l", 0) = 0': "/w/l",
    'openat(AT_FDCWD</w>, "q\\"uo\\303\\274\\n", O_WRONLY) = 3': '/w/q"uoü\n',
    'open("relative", O_WRONLY) = 3': "/work/relative",
}


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(("call", "path"), LINES.items(), ids=[line[:20] for line in LINES])
def test_written_paths(call: str, path: str, step: int) -> None:
    assert paths_of(f"999999999 1700000000.000001 {call}\n", step=step) == [path]


@pytest.mark.parametrize(
    "call",
    [
        'openat(AT_FDCWD</w>, "a", O_RDONLY|O_CLOEXEC) = 3</w/a>',
        'openat(AT_FDCWD</w>, "/dev/null", O_WRONLY) = 3</dev/null>',
        'openat(AT_FDCWD</w>, "/proc/self/mem", O_RDWR) = 3',
        'openat(AT_FDCWD</w>, "/tmp/sample", O_WRONLY) = 3',
        'execve("/x", ["O_WRONLY", "creat(\\"/y\\""], 0x0) = 0',
        'unlink("/a") = 0',
    ],
)
def test_what_is_no_dropped_file(call: str) -> None:
    assert paths_of(f"1 1.0 {call}\n") == []


def test_hostile_traces_are_bounded() -> None:
    files = DroppedFiles([])
    for number in range(3000):
        files.feed(b'1 1.0 creat("/x%d", 0) = 3\n' % number)
    assert len(files.paths()) == 2000
    files.feed(b"x" * (1 << 20))
    files.feed(b"\n1 1.0 garbage \xff\x00(\n")


def test_deleted_file_stays_within_reach(tmp_path: Path) -> None:
    """Seen while it exists, sent after it is gone."""
    sent = {}

    class Server:
        def upload(self, destination: str, source: object, path: str, *_: object) -> int:
            sent[path] = source.read()  # type: ignore[attr-defined]  # a binary file
            return 0

    class Log:
        def info(self, text: str) -> None:
            pass

    victim = tmp_path / "victim"
    victim.write_text("content")
    (tmp_path / "link").symlink_to(victim)
    files = DroppedFiles([])
    for name in ("victim", "link"):
        files.feed(f'1 1.0 creat("{tmp_path}/{name}", 0600) = 3\n'.encode())
    victim.unlink()
    assert files.send(Server(), Log()) == 1
    assert sent == {str(victim): b"content"}
