"""Rules of the working directory, run on what an analysis left."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.evidence import Evidence
from cuckoo_api.reporting.job import Job
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.processors import dropped, procmemory, target
from cuckoo_api.reporting.yara import scan, step

pytestmark = pytest.mark.slow

Put = Callable[[bytes], None]
Scan = Callable[..., dict[str, Any]]

DEMO = r"""
rule demo : trojan shell {
    meta:
        description = "A demo"
        author = "me"
        score = 7
    strings:
        $a = "evil"
        $b = { 63 32 ?? }
    condition:
        any of them
}
"""


@pytest.fixture
def rules(tmp_path: Path) -> Callable[[str, str], None]:
    """Writes a file of ``conf/yara/``."""

    def put(name: str, text: str) -> None:
        path = tmp_path / "conf" / "yara" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return put


@pytest.fixture
def scanned(evidence: Evidence, job: Job, notes: Notes, tmp_path: Path) -> Scan:
    """The parts after the step."""

    def run(seconds: int = 60) -> dict[str, Any]:
        folder = tmp_path / "sections"
        folder.mkdir(exist_ok=True)
        parts = Parts(str(folder))
        for module in (target, dropped, procmemory):
            name = module.__name__.rpartition(".")[2]
            parts.keep(name, module.run(evidence, job, notes))
        step.add_matches(evidence, parts, tmp_path, seconds, notes)
        return {name: parts.read(name) for name in ("target", "dropped", "procmemory")}

    return run


def names(matches: list[dict[str, Any]]) -> list[str]:
    return [match["name"] for match in matches]


def test_a_match_has_cuckoo_s_shape(
    rules: Callable[[str, str], None], sample: Put, scanned: Scan, notes: Notes
) -> None:
    rules("mine/demo.yar", DEMO)
    sample(b"an evil c2! and evil c2?")

    [match] = scanned()["target"]["file"]["yara"]

    assert match["name"] == "demo"
    assert match["meta"] == {"description": "A demo", "author": "me", "score": 7}
    strings = [base64.b64decode(text) for text in match["strings"]]
    assert strings == [b"evil", b"c2!", b"c2?"]
    assert match["offsets"] == {"a": [[3, 0], [16, 0]], "b": [[8, 1], [21, 2]]}
    assert (match["tags"], match["file"]) == (["trojan", "shell"], "mine/demo.yar")
    assert notes.lines == []


def test_dropped_files_and_memory_are_looked_at_too(
    rules: Callable[[str, str], None], sample: Put, folder: Path, scanned: Scan
) -> None:
    rules("demo.yar", DEMO)
    sample(b"harmless")
    (folder / "files" / "1_a").write_bytes(b"evil")
    (folder / "files" / "2_b").write_bytes(b"")
    (folder / "memory" / "12-1.dmp").write_bytes(b"\0" * 5000 + b"evil")

    found = scanned()

    assert found["target"]["file"]["yara"] == []
    assert [names(file["yara"]) for file in found["dropped"]] == [["demo"], []]
    assert found["procmemory"][0]["yara"][0]["offsets"] == {"a": [[5000, 0]]}


def test_a_broken_rule_is_named_and_the_others_work(
    rules: Callable[[str, str], None], sample: Put, scanned: Scan, notes: Notes
) -> None:
    rules(
        "a.yar",
        'rule first { strings: $x = "evil" condition: $x }\n'
        'rule second { strings: $x = "evil" condition: $y }\n'
        "rule third { strings $x = condition: }\n"
        "rule fourth { condition: filesize == 4 }\n",
    )
    rules("b.yara", "rule first { condition: nothing_known }")
    rules("c.yar", "rule first { condition: true }")
    rules("d.txt", "no rules")
    rules("e.yar", "\x00\xff nonsense {")
    sample(b"evil")

    matches = scanned()["target"]["file"]["yara"]

    assert [(match["file"], match["name"]) for match in matches] == [
        ("a.yar", "first"),
        ("a.yar", "fourth"),
        ("c.yar", "first"),
    ]
    assert [line.partition(": ")[2].partition(":")[0] for line in notes.lines] == [
        "the rule second was left out",
        "the rule third was left out",
        "the rule first was left out",
        "a part was left out",
    ]
    assert notes.lines[0].startswith("conf/yara/a.yar:2: ")


def test_a_change_of_the_rules_counts_for_the_next_report(
    rules: Callable[[str, str], None], sample: Put, scanned: Scan, tmp_path: Path
) -> None:
    sample(b"evil")
    assert scanned()["target"]["file"]["yara"] == []
    rules("demo.yar", DEMO)
    assert names(scanned()["target"]["file"]["yara"]) == ["demo"]
    (tmp_path / "conf" / "yara" / "demo.yar").unlink()
    assert scanned()["target"]["file"]["yara"] == []


def test_rules_may_ask_for_a_file_s_name_and_for_its_format(
    rules: Callable[[str, str], None], sample: Put, scanned: Scan, notes: Notes
) -> None:
    rules(
        "a.yar",
        'import "elf"\n'
        'rule named { condition: filename == "demo-sample.sh" and extension == ".sh" }\n'
        'rule typed { condition: filetype contains "ELF" and elf.type == elf.ET_DYN }\n',
    )
    sample(Path("/bin/true").read_bytes())

    assert names(scanned()["target"]["file"]["yara"]) == ["named", "typed"]
    assert notes.lines == []


def test_what_matches_often_or_is_large_is_cut(
    rules: Callable[[str, str], None],
    sample: Put,
    scanned: Scan,
    folder: Path,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "MAX_RULES", 2)
    rules("a.yar", "".join(f'rule r{n} {{ strings: $a = "aa" condition: $a }}\n' for n in range(3)))
    sample(b"a" * 5000)
    with (folder / "memory" / "1-1.dmp").open("wb") as file:
        file.write(b"aa")
        file.truncate((32 << 20) + 1)

    found = scanned()

    matches = found["target"]["file"]["yara"]
    assert (len(matches), len(matches[0]["offsets"]["a"])) == (2, scan.MAX_PLACES)
    assert len(found["procmemory"][0]["yara"]) == 2
    assert notes.lines == ["yara: cut at 2", "yara: only a part of '1-1' was looked at"]


def test_when_the_time_is_over_the_report_has_what_was_found_until_then(
    rules: Callable[[str, str], None], sample: Put, scanned: Scan, notes: Notes
) -> None:
    rules("demo.yar", DEMO)
    sample(b"evil")

    assert scanned(seconds=1)["target"]["file"]["yara"] == []
    assert notes.lines == ["yara: the time was over before all files were looked at"]


def test_a_rule_that_is_too_slow_costs_its_file_only(
    rules: Callable[[str, str], None],
    sample: Put,
    folder: Path,
    scanned: Scan,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "FILE_SECONDS", 1)
    rules(
        "slow.yar",
        "rule slow { condition: filesize > 1000 and for all i in (0..100000000000): "
        "(uint8(i % filesize) != 1) }",
    )
    sample(bytes(2000))
    (folder / "files" / "1_a").write_bytes(b"x")

    found = scanned()

    assert found["target"]["file"]["yara"] == found["dropped"][0]["yara"] == []
    assert notes.lines == ["yara: looking at 'demo-sample.sh' took too long"]
