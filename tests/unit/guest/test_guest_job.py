"""analysis.conf and the analyzer's zip: what the guest is given, made on the host."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from guestkit import payload_module
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.guest import GuestJob, NoAnalyzer, analyzer_zip
from cuckoo_api.guest.analyzer import PAYLOAD, digest_of
from cuckoo_api.model.task import Task

pytestmark = pytest.mark.slow

analysisconf = payload_module("analysisconf")


def job_of(task: Task) -> GuestJob:
    return GuestJob(
        task=task,
        sample=Path("/sample"),
        analyzer=Path("/a.zip"),
        resultserver_ip="192.168.55.1",
        resultserver_port=2042,
        timeout=90,
    )


def test_analyzer_reads_what_the_host_writes(task: Task, tmp_path: Path) -> None:
    task = msgspec.structs.replace(
        task,
        package="sh",
        clock="2024-02-03 04:05:06",
        enforce_timeout=True,
        options={"arguments": "-a,-b 100%", "user": "nobody"},
    )
    (tmp_path / "analysis.conf").write_text(job_of(task).conf())
    conf = analysisconf.AnalysisConf.read(str(tmp_path / "analysis.conf"))
    assert (conf.id, conf.category, conf.package) == ("7", "file", "sh")
    assert (conf.ip, conf.port, conf.timeout) == ("192.168.55.1", 2042, 90)
    assert (conf.enforce_timeout, conf.file_name) == (True, "sample.sh")
    assert conf.options == {"arguments": "-a,-b 100%", "user": "nobody"}
    assert conf.clock == 1706933106.0


@given(
    target=st.text(max_size=40),
    package=st.text(max_size=20),
    options=st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=3),
)
def test_no_submission_adds_a_line(target: str, package: str, options: dict[str, str]) -> None:
    task = Task(
        id=1, category="url", target=target, package=package, options=options, added_on="", clock=""
    )
    lines = job_of(task).conf().encode("utf-8", "strict").decode().splitlines()
    assert lines[0] == "[analysis]"
    names = [line.split(" = ")[0] for line in lines[1:]]
    assert len(names) == len(set(names)) == 13
    assert f"timeout = {90}" in lines


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/a/b/invoice.pdf.exe", "invoice.pdf.exe"),
        ("C:\\x\\evil.doc", "evil.doc"),
        ("über größe.sh", "über größe.sh"),
        ("../..", "sample"),
        ("", "sample"),
        ("a\nb\0c?.sh", "a_b_c_.sh"),
        ("x" * 400 + ".sh", "x" * 150 + ".sh"),
        (".bashrc", "bashrc"),
    ],
)
def test_file_name_is_safe_and_keeps_its_extension(task: Task, target: str, name: str) -> None:
    assert job_of(msgspec.structs.replace(task, target=target)).file_name == name


def test_member_of_an_archive_names_the_file(task: Task) -> None:
    task = msgspec.structs.replace(
        task, category="archive", target="/a.zip", options={"filename": "dir/in.sh"}
    )
    assert job_of(task).file_name == "in.sh"
    assert "category = file\n" in job_of(task).conf()


def test_url_has_no_file_name(task: Task) -> None:
    url = msgspec.structs.replace(task, category="url", target="http://example.com/a.sh")
    conf = replace(job_of(url), sample=None).conf()
    assert "file_name = \n" in conf
    assert "target = http://example.com/a.sh\n" in conf


def test_zip_is_the_same_for_the_same_content(tmp_path: Path) -> None:
    first = analyzer_zip("linux", tmp_path, tmp_path / "cache1")
    second = analyzer_zip("linux", tmp_path, tmp_path / "cache2")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    with zipfile.ZipFile(first) as archive:
        assert "analyzer.py" in archive.namelist()
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_zip_is_made_once(tmp_path: Path) -> None:
    made = analyzer_zip("linux", tmp_path, tmp_path / "cache")
    before = made.stat().st_mtime_ns, made.stat().st_ino
    again = analyzer_zip("linux", tmp_path, tmp_path / "cache")
    assert (again.stat().st_mtime_ns, again.stat().st_ino) == before


def test_own_analyzer_of_the_installation_comes_first(tmp_path: Path) -> None:
    own = tmp_path / "analyzer/linux"
    own.mkdir(parents=True)
    (own / "analyzer.py").write_text("mine")
    (own / "link").symlink_to("/etc/passwd")
    (own / "__pycache__").mkdir()
    (own / "__pycache__/x.pyc").write_text("stale")
    first = analyzer_zip("linux", tmp_path, tmp_path / "cache")
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == ["analyzer.py"]
    (own / "analyzer.py").write_text("changed")
    assert analyzer_zip("linux", tmp_path, tmp_path / "cache") != first


@pytest.mark.parametrize("platform", ["beos", "../linux", ""])
def test_platform_without_an_analyzer(tmp_path: Path, platform: str) -> None:
    with pytest.raises(NoAnalyzer):
        analyzer_zip(platform, tmp_path, tmp_path / "cache")


def test_agent_and_host_agree_on_the_digest(tmp_path: Path) -> None:
    agent = payload_module("agent")
    archive = analyzer_zip("linux", tmp_path, tmp_path / "cache")
    assert agent.folder_digest(str(PAYLOAD / "analyzers/linux")) == digest_of(archive)
    with zipfile.ZipFile(archive) as unpacked:
        unpacked.extractall(tmp_path / "x")
    (tmp_path / "x/analysis.conf").write_text("of an earlier analysis")
    assert agent.folder_digest(str(tmp_path / "x")) == digest_of(archive)
    (tmp_path / "x/analyzer.py").write_text("changed")
    assert agent.folder_digest(str(tmp_path / "x")) != digest_of(archive)
