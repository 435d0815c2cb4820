"""conf/tokens.conf: what stands in it, what may not, and that it is never half written."""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cuckoo_api.model.errors import BadInput, ConfigError, Conflict, NotFound
from cuckoo_api.settings import Rights, default_conf, init_cwd, load_settings
from cuckoo_api.settings.tokens import Token, add_token, revoke_token, stamp

pytestmark = pytest.mark.slow


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    init_cwd(tmp_path, [])
    conf = tmp_path / "conf/cuckoo.conf"
    conf.write_text("[cuckoo]\nmachinery =\n")
    return tmp_path


def tokens(cwd: Path) -> tuple[Token, ...]:
    return load_settings(cwd, []).tokens


def write(cwd: Path, text: str) -> Path:
    path = cwd / "conf/tokens.conf"
    path.write_text(text)
    return path


def test_a_new_working_directory_has_none(cwd: Path) -> None:
    settings = load_settings(cwd, [])
    assert (settings.tokens, settings.warnings, settings.asks_for_token) == ((), (), False)


def test_a_token_is_kept_as_its_hash(cwd: Path) -> None:
    made = add_token(cwd, "soc", rights=Rights.READ, rate=60, burst=5)
    assert len(made) >= 43
    [token] = tokens(cwd)
    assert (token.name, token.rights, token.rate, token.burst) == ("soc", Rights.READ, 60, 5)
    assert token.digest == hashlib.sha256(made.encode()).digest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", token.added)
    path = cwd / "conf/tokens.conf"
    assert path.stat().st_mode & 0o777 == 0o600
    assert made not in path.read_text()
    assert token.digest.hex() not in repr(token)
    assert load_settings(cwd, []).asks_for_token


def test_two_tokens_are_never_the_same(cwd: Path) -> None:
    assert len({add_token(cwd, f"t{n}") for n in range(20)}) == 20
    assert [token.name for token in tokens(cwd)] == [f"t{n}" for n in range(20)]


def test_what_somebody_wrote_around_a_token_stays(cwd: Path) -> None:
    add_token(cwd, "one")
    path = cwd / "conf/tokens.conf"
    path.write_text(path.read_text() + "# the second is Bob's\n")
    add_token(cwd, "two")
    add_token(cwd, "three")
    revoke_token(cwd, "one")
    text = path.read_text()
    assert text.startswith(default_conf("tokens.conf"))
    assert "\n# the second is Bob's\n\n[two]\n" in text
    assert [token.name for token in tokens(cwd)] == ["two", "three"]
    revoke_token(cwd, "three")
    revoke_token(cwd, "two")
    assert tokens(cwd) == ()
    assert "[" not in path.read_text().replace("# [soc]", "").replace("[cuckoo]", "")


def test_a_token_of_the_name_of_another_s_beginning_stays(cwd: Path) -> None:
    for name in ("soc.1", "soc-1", "soc"):
        add_token(cwd, name)
    revoke_token(cwd, "soc")
    revoke_token(cwd, "soc.1")
    assert [token.name for token in tokens(cwd)] == ["soc-1"]


def test_what_cannot_be_added(cwd: Path) -> None:
    add_token(cwd, "soc")
    before = (cwd / "conf/tokens.conf").read_text()
    with pytest.raises(Conflict, match="'soc' already; revoke it first"):
        add_token(cwd, "soc")
    for name in ["", "a b", "a]b", "[", "é", "x" * 65, ".a", "api_token", "a\nb"]:
        with pytest.raises(BadInput, match="no name for a token"):
            add_token(cwd, name)
    with pytest.raises(BadInput, match="rate, burst"):
        add_token(cwd, "other", rate=1_000_001)
    assert (cwd / "conf/tokens.conf").read_text() == before


def test_one_that_is_not_there_cannot_be_revoked(cwd: Path) -> None:
    with pytest.raises(NotFound, match="no token 'soc'; there is none"):
        revoke_token(cwd, "soc")
    add_token(cwd, "other")
    with pytest.raises(NotFound, match="there is other"):
        revoke_token(cwd, "soc")


def test_all_faults_are_told_and_no_value_that_may_be_a_token(cwd: Path) -> None:
    write(
        cwd,
        "[a]\nrights = all\nrate = -1\nsha256 = s3kret-token\n[api_token]\nsha256 = " + "a" * 64,
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(cwd, [])
    assert sorted(caught.value.faults) == [
        "conf/tokens.conf:2 [a] rights: 'all'; allowed: read, submit, admin",
        "conf/tokens.conf:3 [a] rate: '-1'; allowed: a whole number from 0 to 1000000",
        "conf/tokens.conf:4 [a] sha256: no SHA-256; allowed: what 'cuckoo token add' writes",
        (
            "conf/tokens.conf:5 [api_token]: no name for a token; allowed: 1 to 64 letters, "
            "digits, '.', '_' and '-', but not 'api_token'"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cuckoo]\napi_token s3kret\n", "conf/cuckoo.conf: line 2: expected 'key = value'"),
        ("s3kret\n", "conf/cuckoo.conf: line 1: there are no section headers before it"),
    ],
)
def test_a_line_that_is_none_is_not_shown(cwd: Path, text: str, expected: str) -> None:
    (cwd / "conf/cuckoo.conf").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(cwd, [])
    assert expected in caught.value.faults
    assert "s3kret" not in str(caught.value)


def test_a_faulty_file_is_not_written_to(cwd: Path) -> None:
    text = write(cwd, "[a]\nsha256 = x\n").read_text()
    with pytest.raises(ConfigError):
        add_token(cwd, "b")
    with pytest.raises(ConfigError):
        revoke_token(cwd, "a")
    assert (cwd / "conf/tokens.conf").read_text() == text


def test_many_add_at_once_and_nobody_is_lost(cwd: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_token(cwd, f"t{n}"), range(16)))
    assert {token.name for token in tokens(cwd)} == {f"t{n}" for n in range(16)}
    assert {path.name for path in (cwd / "conf").iterdir() if path.is_file()} == {
        "cuckoo.conf",
        "routing.conf",
        "tokens.conf",
    }


def test_what_fails_midway_leaves_the_file_as_it_was(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = add_token(cwd, "soc")
    before, look = tokens(cwd), stamp(cwd)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", full)
        revoke_token(cwd, "soc")
    assert tokens(cwd) == before
    assert stamp(cwd) == look
    revoke_token(cwd, "soc")
    assert stamp(cwd) != look
    assert made
