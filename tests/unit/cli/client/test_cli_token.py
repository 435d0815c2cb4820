"""``cuckoo token`` and ``cuckoo completion``: they need no server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cuckoo_api.cli.main import main
from cuckoo_api.settings.tokens import digest

pytestmark = pytest.mark.slow


def run(cwd: Path, *words: str) -> int:
    return main(["--cwd", str(cwd), *words])


def test_a_token_is_printed_once_and_alone(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cwd, "token", "add", "soc", "--rights", "read", "--rate", "60") == 0
    shown = capsys.readouterr()
    [token] = shown.out.splitlines()
    assert shown.err == "Note it down: it is kept nowhere, and cannot be shown again.\n"
    text = (cwd / "conf/tokens.conf").read_text()
    assert token not in text
    assert digest(token).hex() in text
    assert run(cwd, "token", "list") == 0
    shown = capsys.readouterr()
    assert token not in shown.out
    for word in ["soc", "read", "60"]:
        assert word in shown.out


def test_tokens_are_listed_for_programs(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(cwd, "token", "list")
    assert "none but api_token" in capsys.readouterr().out
    run(cwd, "token", "add", "a", "--rights", "admin")
    run(cwd, "token", "add", "b", "--rate", "5", "--burst", "2")
    capsys.readouterr()
    run(cwd, "token", "list", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert [[t[k] for k in ("name", "rights", "rate", "burst")] for t in listed] == [
        ["a", "admin", 0, 0],
        ["b", "submit", 5, 2],
    ]


def test_a_token_is_revoked(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(cwd, "token", "add", "soc")
    capsys.readouterr()
    assert run(cwd, "token", "revoke", "soc") == 0
    assert capsys.readouterr().out == "soc is revoked.\n"
    assert run(cwd, "token", "revoke", "soc") == 1
    assert capsys.readouterr().err == "cuckoo: there is no token 'soc'; there is none\n"
    assert run(cwd, "token", "add", "a b") == 1
    assert "'a b' is no name for a token" in capsys.readouterr().err


def test_without_a_working_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "token", "list") == 2
    assert "is no working directory yet" in capsys.readouterr().err


def test_a_faulty_file_is_named(cwd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cwd / "conf/tokens.conf").write_text("[a]\nsha256 = b\n")
    for words in [("list",), ("add", "c"), ("revoke", "a")]:
        assert run(cwd, "token", *words) == 2
        assert "conf/tokens.conf:2 [a] sha256: no SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["re"], {"reload", "report", "reschedule", "restore"}),
        (["token", ""], {"add", "list", "revoke"}),
        (["token", "add", "x", "--rights", ""], {"read", "submit", "admin"}),
        (["list", "--st"], {"--status"}),
        (["list", "--status", "p"], {"pending"}),
        (["report", "1", "--format", ""], {"json", "html", "all", "dropped", "package_files"}),
        (["submit", "sam"], {"sample.sh"}),
        (["report", "1", "-o", "sam"], {"sample.sh"}),
        (["--cwd", "fol"], {"folder"}),
        (["list", "--sample", "sam"], set()),
    ],
)
def test_bash_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: set[str]
) -> None:
    (tmp_path / "sample.sh").touch()
    (tmp_path / "folder").mkdir()
    bash = shutil.which("bash")
    assert bash is not None
    assert main(["completion", "bash"]) == 0
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=(cuckoo {quoted}); COMP_CWORD={len(words)}; _shtab_cuckoo"
    done = subprocess.run(
        [bash, "--norc"],
        input=f"{capsys.readouterr().out}\n{ask}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef cuckoo"), ("fish", "#")])
def test_the_other_shells_have_scripts(
    capsys: pytest.CaptureFixture[str], shell: str, begins: str
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script.startswith(begins)
    for word in ["reschedule", "revoke", "package_files", "completed-after"]:
        assert word in script
