"""One engine a working directory, whoever died in it before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server.lock import NAME, engine_lock, engine_pid


def test_a_second_engine_is_refused_with_the_firsts_pid(tmp_path: Path) -> None:
    with engine_lock(tmp_path), pytest.raises(ConfigError) as refusal, engine_lock(tmp_path):
        pytest.fail("two engines")

    text = f"another server is already running on {tmp_path} (pid {os.getpid()})"
    assert refusal.value.faults == [text]


def test_a_directory_is_free_after_its_engine(tmp_path: Path) -> None:
    for _ in range(2):
        with engine_lock(tmp_path):
            assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"


def test_a_refused_engine_does_not_disturb_the_first(tmp_path: Path) -> None:
    with engine_lock(tmp_path):
        for _ in range(2):
            with pytest.raises(ConfigError), engine_lock(tmp_path):
                pytest.fail("two engines")
        assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("left", [b"", b"999999999\n", b"\xff\xfe\n", b"1234567890" * 9])
def test_what_a_dead_engine_left_is_no_obstacle(tmp_path: Path, left: bytes) -> None:
    (tmp_path / NAME).write_bytes(left)
    with engine_lock(tmp_path):
        assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"


def test_other_directories_have_engines_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with engine_lock(tmp_path / "a"), engine_lock(tmp_path / "b"):
        assert (tmp_path / "b" / NAME).exists()


def test_the_file_is_private(tmp_path: Path) -> None:
    with engine_lock(tmp_path):
        assert (tmp_path / NAME).stat().st_mode & 0o077 == 0


def test_the_engines_process_is_known_as_long_as_it_has_the_directory(tmp_path: Path) -> None:
    assert engine_pid(tmp_path) is None
    with engine_lock(tmp_path, is_server=True):
        assert engine_pid(tmp_path) == os.getpid()
    assert engine_pid(tmp_path) is None  # the file is there
    with engine_lock(tmp_path):
        assert engine_pid(tmp_path) is None  # a command has it
    (tmp_path / NAME).write_bytes(b"junk server\n")
    assert engine_pid(tmp_path) is None
