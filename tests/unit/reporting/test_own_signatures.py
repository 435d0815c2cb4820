"""Signatures of the user's own: from the working directory and from installed packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.job import Job, Request
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.signatures import loading
from cuckoo_api.reporting.signatures.builtin import SIGNATURES
from cuckoo_api.reporting.signatures.loading import load_signatures
from cuckoo_api.reporting.signatures.step import judge

pytestmark = pytest.mark.slow

Write = Callable[[str, str], None]

GOOD = """
from cuckoo_api.reporting.signatures import Facts, Signature, mark

class {name}(Signature):
    name = "{word}"
    description = "Reads a file of ours"
    severity = 2
    ttp = ("T1005",)

    def marks(self, facts: Facts):
        for seen in facts.seen("file_read"):
            if seen.path.startswith("/ours/"):
                yield mark("file", seen.path, seen)
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of ``signatures/``."""
    (tmp_path / "signatures").mkdir()

    def put(name: str, text: str) -> None:
        (tmp_path / "signatures" / name).write_text(text)

    return put


@pytest.fixture
def names(tmp_path: Path, notes: Notes) -> Callable[[], list[str]]:
    return lambda: [kind.name for kind in load_signatures(tmp_path, SIGNATURES, notes)]


def judged(tmp_path: Path, job: Job, notes: Notes, **sections: Any) -> list[dict[str, Any]]:
    """The part that the step makes of these others."""
    folder = tmp_path / "sections"
    folder.mkdir()
    parts = Parts(str(folder))
    for name, section in sections.items():
        parts.keep(name, section)
    request = Request(
        folder=str(tmp_path), sections=str(folder), job=job, steps=[], messages=[],
        cwd=str(tmp_path), parent=0, size_limit=1, seconds=60, memory=1, cpu=1,
    )  # fmt: skip
    judge(request, parts, notes)
    made: list[dict[str, Any]] = parts.read("signatures")
    return made


def test_a_file_of_the_working_directory_counts_like_the_package_s_own(
    write: Write, tmp_path: Path, job: Job, notes: Notes
) -> None:
    write("mine.py", GOOD.format(name="Mine", word="mine"))
    summary = {"file_read": ["/ours/x", "/etc/shadow"]}
    generic = [{"pid": 3, "process_name": "cat", "summary": summary}]

    shadow, mine = judged(tmp_path, job, notes, behavior={"generic": generic, "summary": summary})

    assert (shadow["name"], mine["name"]) == ("reads_shadow", "mine")
    assert (mine["severity"], mine["ttp"], mine["description"]) == (
        2, ["T1005"], "Reads a file of ours",
    )  # fmt: skip
    assert mine["marks"] == [
        {
            "type": "ioc",
            "category": "file",
            "ioc": "/ours/x",
            "description": None,
            "pid": 3,
            "process_name": "cat",
        }
    ]
    assert notes.lines == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_known", "No module named 'nothing_known'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os", "it has no signature"),
        ("while True: pass", "TimeoutError: it took longer than"),
        (GOOD.format(name="A", word="reads_shadow"), "another signature is called 'reads_shadow'"),
        (GOOD.format(name="A", word="Not Good"), "its name is 'Not Good'; allowed: small letters"),
        (GOOD.format(name="A", word="a").replace("= 2", "= 9"), "its severity is 9; allowed: 1, 2"),
        (GOOD.format(name="A", word="a").replace("T1005", "1005"), "its ttp has '1005'; allowed:"),
        (GOOD.format(name="A", word="a").replace('("T1005",)', "7"), "its ttp has 7; allowed:"),
        (GOOD.format(name="A", word="a").replace("    description", "    _"), "no description"),
    ],
)
def test_a_broken_file_is_named_and_the_others_work(
    write: Write,
    names: Callable[[], list[str]],
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    reason: str,
) -> None:
    monkeypatch.setattr(loading, "SECONDS", 0.05)
    write("broken.py", text)
    write("good.py", GOOD.format(name="Good", word="good"))
    write("_helpers.py", "raise RuntimeError")
    write("notes.txt", "no Python")

    assert names() == ["good"]
    [note] = notes.lines
    assert note.startswith("signatures/broken.py")
    assert reason in note


def test_what_is_made_to_be_inherited_from_is_no_signature(
    write: Write, names: Callable[[], list[str]], notes: Notes
) -> None:
    write("a.py", GOOD.format(name="_Base", word="x") + "\nclass A(_Base):\n    name = 'a'\n")
    write("b.py", "from abc import abstractmethod\n" + GOOD.format(name="B", word="b")
          + "\nclass Abstract(Signature):\n    name = 'c'\n")  # fmt: skip

    assert names() == ["a", "b"]
    assert notes.lines == []


def test_without_a_folder_there_are_none(names: Callable[[], list[str]], notes: Notes) -> None:
    assert names() == []
    assert notes.lines == []


@pytest.mark.parametrize("marked", [True, False])
def test_after_a_restart_the_guest_s_own_business_is_no_evidence(
    tmp_path: Path, job: Job, notes: Notes, marked: bool
) -> None:
    (tmp_path / "reboot.json").write_text('{"parent": 1, "restored": ["/tmp/x"]}')

    def process(pid: int, path: str, *, restored: bool) -> dict[str, Any]:
        return {
            "pid": pid,
            "summary": {"file_read": [path]},
            "command_line": "/tmp/x",
            "autostart": {"by": "cron", "restored": restored} if marked else None,
        }

    generic = [process(1, "/etc/shadow", restored=False), process(2, "/x", restored=True)]
    behavior = {"generic": generic, "summary": {"file_read": ["/etc/shadow", "/x"]}}
    found = [item["name"] for item in judged(tmp_path, job, notes, behavior=behavior)]
    assert found == (["started_by_itself"] if marked else ["reads_shadow"])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with one good entry point and one broken."""
    site = tmp_path / "site-packages"
    info = site / "more_signatures-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-signatures\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[cuckoo_api.signatures]\nbroken = more_signatures.gone\nmore = more_signatures\n"
        "none = more_signatures:mark\none = more_signatures:_One\n"
    )
    (site / "more_signatures.py").write_text(
        GOOD.format(name="More", word="more") + GOOD.format(name="_One", word="one")
    )
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site
    sys.modules.pop("more_signatures", None)


def test_an_installed_package_brings_signatures(
    package: Path, names: Callable[[], list[str]], notes: Notes
) -> None:
    assert names() == ["more", "one"]
    broken, none = notes.lines
    assert broken.startswith("broken (more_signatures.gone) was left out: ModuleNotFoundError")
    assert none == "none (more_signatures:mark) was left out: it has no signature"
