"""docs/report.md and docs/guest.md agree with what reports, guests and the result server are."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import msgspec
import pytest
from docskit import ROOT, block, blocks, codes, page, rows, section, table

from cuckoo_api.artefacts.folder import SUBFOLDERS
from cuckoo_api.guest import GuestJob
from cuckoo_api.model.task import Task
from cuckoo_api.reporting.bounds import Notes
from cuckoo_api.reporting.processors.formats import elf, macho, pe, script
from cuckoo_api.reporting.processors.monitor.calls import SIMPLE
from cuckoo_api.reporting.reporters.jsonreport import CONSTANT
from cuckoo_api.reporting.sections import EMPTY, PROCESSORS
from cuckoo_api.reporting.signatures import Facts, score
from cuckoo_api.reporting.signatures.builtin import SIGNATURES
from cuckoo_api.reporting.signatures.loading import load_signatures
from cuckoo_api.results.protocol import FOLDERS

pytestmark = pytest.mark.slow

REPORT = page("docs/report.md")
GUEST = page("docs/guest.md")
PAYLOAD = ROOT / "src/cuckoo_api/guest/payload"


# -- the report ---------------------------------------------------------------------------------


def test_every_part_of_the_report_is_documented() -> None:
    assert list(table(REPORT)) == ["info", *PROCESSORS, "signatures", *CONSTANT]


@pytest.mark.parametrize("part", ["behavior", "network"])
def test_every_key_of_a_part_is_documented(part: str) -> None:
    assert list(table(section(REPORT, part))) == list(EMPTY[part])


def test_every_category_of_the_summary_is_documented() -> None:
    source = page("src/cuckoo_api/reporting/processors/trace/calls.py")
    used = set(re.findall(r'\b(?:add|_activity\.add)\([\w.]+, "(\w+)"', source))
    text = section(REPORT, "behavior").split("of the summary:")[1]
    assert set(table(text)) == used
    source = page("src/cuckoo_api/reporting/processors/monitor/calls.py")
    windows = set(re.findall(r'"(\w+)"', "".join(re.findall(r"(?:_add\(| kind = )(.*)", source))))
    windows |= {category for category, _ in SIMPLE.values()}
    named = set(table(text.split("of Windows guests only:")[1]))
    assert named == {item for item in windows if "_" in item or item == "mutex"} - used


def test_every_key_of_a_windows_program_is_documented() -> None:
    assert list(table(section(REPORT, "static"))) == list(pe.PARTS)


@pytest.mark.parametrize(("kind", "parts"), [("elf", elf.PARTS), ("macho", macho.PARTS)])
def test_every_key_of_another_program_is_documented(kind: str, parts: dict[str, object]) -> None:
    [text] = [p for p in section(REPORT, "static").split("\n\n") if f" has `{kind}`" in p]
    assert set(codes(text)) - {kind, "architectures"} == set(parts)


def test_what_is_notable_in_a_script_is_documented() -> None:
    text = section(REPORT, "static").partition("each of these that is in it:")[2]
    assert list(table(text)) == list(script.NOTABLE)


def test_the_signatures_are_listed_as_they_are() -> None:
    found = table(section(REPORT, "signatures"))
    assert list(found) == [kind.name for kind in SIGNATURES]
    for kind in SIGNATURES:
        row = found[kind.name]
        assert row["Severity"] == str(kind.severity)
        assert row["Technique"] == ", ".join(kind.ttp)
        assert row["Description"] == kind.description
    for name in ("README.md", "CHANGELOG.md"):
        assert f"{len(SIGNATURES)}" in re.findall(r"(\d+)\s+signatures", page(name))


def test_the_shown_signature_works(tmp_path: Path) -> None:
    folder = tmp_path / "signatures"
    folder.mkdir()
    (folder / "a.py").write_text(block(REPORT, "signatures/changes_hosts.py"))
    notes = Notes()

    [kind] = load_signatures(tmp_path, SIGNATURES, notes)

    written = b'{"behavior": {"summary": {"file_written": ["/etc/hosts", "/etc/host"]}}}'
    [mark] = kind().marks(msgspec.json.decode(written, type=Facts))
    assert (mark["category"], mark["ioc"]) == ("file", "/etc/hosts")
    assert notes.lines == []


def test_what_a_signature_looks_at_is_documented() -> None:
    listed = rows(section(REPORT, "Signatures of your own"))
    shown = {name.partition("(")[0] for row in listed for name in codes(row["Of `facts`"])}
    assert shown == {name for name in dir(Facts) if name[0] != "_"}


def test_the_score_is_computed_as_it_says() -> None:
    text = section(REPORT, "The score")
    rows = re.findall(r"^\| (\d) \| [^|]+ \| ([\d.]+) \|$", text, re.MULTILINE)
    assert [level for level, _ in rows] == ["1", "2", "3"]
    for level, counts in rows:
        assert score([int(level)]) == float(counts)
    assert score([3] * 4) == 10


def test_every_folder_of_an_analysis_is_documented() -> None:
    found = table(section(REPORT, "The analysis folder"))
    assert {name.rstrip("/") for name in found if name.endswith("/")} == set(SUBFOLDERS)


# -- guests -------------------------------------------------------------------------------------


def test_every_route_of_the_agent_is_documented() -> None:
    source = (PAYLOAD / "agent.py").read_text()
    found = set(re.findall(r"^    def (get|post)_(\w+)\(self, request", source, re.MULTILINE))
    served = {f"{method.upper()} /{path.replace('index', '')}" for method, path in found}
    documented = table(section(GUEST, "The agent's protocol"))
    assert set(documented) == served
    fields = {field for row in documented.values() for field in codes(row["Form fields"])}
    for field in fields:
        assert f'"{field}"' in source


def test_the_shown_analysis_conf_has_the_keys_of_a_real_one() -> None:
    shown, real = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    [text] = [b.text for b in blocks(GUEST) if b.text.startswith("[analysis]")]
    shown.read_string(text)
    job = GuestJob(
        task=Task(id=1, category="file", target="x", added_on=""),
        sample=None, analyzer=Path("x"),
        resultserver_ip="192.168.55.1", resultserver_port=2042, timeout=30,
    )  # fmt: skip
    real.read_string(job.conf())
    assert list(shown["analysis"]) == list(real["analysis"])


def test_the_packages_and_options_are_the_analyzer_s() -> None:
    analyzer = PAYLOAD / "analyzers/linux"
    source = "".join((analyzer / name).read_text() for name in ("targets.py", "analysis.py"))
    for package in table(section(GUEST, "Packages")):
        assert f'"{package}"' in source
    read = set(re.findall(r'conf\.(?:options\.get|wants)\("(\w+)"', source))
    # the other two are the server's
    assert set(table(section(GUEST, "Options"))) == read | {"filename", "route"}


def test_the_folders_of_the_result_server_are_documented() -> None:
    text = " ".join(section(GUEST, "The result server's protocol").split())
    found = text.partition("one of the folders ")[2].partition(", and one plain name")[0]
    assert set(codes(found)) == FOLDERS
