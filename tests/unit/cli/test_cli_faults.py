"""What must be mended first is told, all of it, in lines that say where; the exit code is 2."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from cuckoo_api.cli.main import main
from cuckoo_api.server.lock import engine_lock
from cuckoo_api.settings.init import with_value


def configure(cwd: Path, **values: str) -> None:
    """Change keys of ``[cuckoo]``."""
    path = cwd / "conf" / "cuckoo.conf"
    text = path.read_text()
    for key, value in values.items():
        text = with_value(text, "cuckoo", key, value)
    path.write_text(text)


def run(capsys: pytest.CaptureFixture[str], cwd: Path, *words: str) -> tuple[int, list[str]]:
    """The exit code and the lines of standard error; standard output has nothing."""
    code = main(["--cwd", str(cwd), *words])
    said = capsys.readouterr()
    assert said.out == ""
    return code, said.err.splitlines()


def test_every_fault_is_listed_at_once(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(cwd, machinery="qemu, nonesuch", freespace="much", max_attempts="0")
    code, lines = run(capsys, cwd, "api", "-p", "0")

    assert code == 2
    assert len(lines) == 3
    for key, line in zip(("freespace", "max_attempts", "machinery"), lines, strict=True):
        assert re.match(rf"cuckoo: conf/cuckoo\.conf(:\d+)? \[cuckoo\] {key}: ", line)
    assert re.search(r"installed: .*\bqemu\b", lines[2])


@pytest.mark.parametrize("words", [("api",), ("submit", "x"), ("machines",), ("guest", "check")])
def test_where_no_working_directory_is_the_way_to_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, lines = run(capsys, tmp_path, *words)

    assert code == 2
    assert lines == [
        f"cuckoo: {tmp_path} is no working directory yet; run 'cuckoo --cwd {tmp_path} init'"
    ]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_is_a_warning_with_its_section(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cwd / "conf" / "cuckoo.conf"
    path.write_text(path.read_text().replace("[api]\n", "[api]\nhosst = x\n"))
    code, lines = run(capsys, cwd, "machines", "--url", "http://127.0.0.1:1")

    assert code == 1
    assert re.match(r"warning: conf/cuckoo\.conf:\d+ \[api\] hosst: .*'host'", lines[0])


def test_a_second_engine_is_refused_in_one_line(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine_lock(cwd):
        code, lines = run(capsys, cwd, "api", "-p", "0")

    assert code == 2
    text = f"cuckoo: another server is already running on {cwd} (pid {os.getpid()})"
    assert [line for line in lines if not line.startswith("{")] == [text]


def test_a_port_that_is_taken_is_said_in_one_line(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, lines = run(capsys, cwd, "api", "--no-engine", "-p", str(port))

    assert code == 2
    [line] = [line for line in lines if not line.startswith("{")]
    assert line.startswith(f"cuckoo: cannot listen on 127.0.0.1:{port}: ")


def test_an_open_address_without_a_token_is_refused(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(cwd, api_token="")
    code, lines = run(capsys, cwd, "api", "-H", "0.0.0.0", "-p", "0")

    assert code == 2
    [line] = [line for line in lines if not line.startswith("{")]
    assert line.startswith("cuckoo: refusing to listen on '0.0.0.0' without authentication: ")


def test_a_server_that_is_not_there_is_one_line(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for words in (["machines"], ["submit", "http://e.example/"]):
            code, lines = run(capsys, cwd, *words, "--url", url)
            assert code == 1
            [line] = lines
            assert line.startswith(f"cuckoo: no server answers at {url} (")
            assert line.endswith("start it with 'cuckoo api'")
