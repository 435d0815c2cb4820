"""What clients may rely on in a report is there after a whole analysis, with its value."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import pytest
import ssdeep
from fakekit import REAL_WORKER, SAMPLE, Site

from cuckoo_api import __version__
from cuckoo_api.reporting import service as reporting
from cuckoo_api.testing.fake import scripts

pytestmark = pytest.mark.slow

SIGNATURE = """
from cuckoo_api.reporting.signatures import Facts, Signature, mark

class Drops(Signature):
    name = "drops"
    description = "Leaves a file"
    severity = 3
    ttp = ("T1105",)
    families = ("Fake",)
    references = ("https://e.example/",)

    def marks(self, facts: Facts):
        for seen in facts.seen("file_created"):
            yield mark("file", seen.path, seen)
"""


def part(whole: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Those keys of the whole that are expected."""
    return {key: whole[key] for key in expected}


async def test_a_report_has_every_field_that_clients_know(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_run", REAL_WORKER)
    signatures = site.settings.cwd / "signatures"
    signatures.mkdir()
    (signatures / "mine.py").write_text(SIGNATURE)
    site.add("one")
    await site.start()
    task = await site.analyse(
        name="hello.sh", package="shell", options="arguments=-v", owner="soc", custom="mine"
    )
    report = await site.get(f"/tasks/report/{task['id']}")

    known = {
        "id": 1,
        "category": "file",
        "package": "shell",
        "platform": "linux",
        "machine": {k: v for k, v in task["guest"].items() if k != "exit_address"},
        "exit_address": task["guest"]["exit_address"],
        "started": task["started_on"],
        "ended": task["completed_on"],
        "duration": task["duration"],
        "owner": "soc",
        "custom": "mine",
        "route": "none",
        "version": __version__,
        "options": "arguments=-v",
    }
    assert part(report["info"], known) == known
    assert 0 < report["info"]["score"] <= 10

    sha256 = hashlib.sha256(SAMPLE).hexdigest()
    file = {
        "name": "hello.sh",
        "path": f"storage/binaries/{sha256}",
        "size": len(SAMPLE),
        "type": "POSIX shell script, ASCII text executable",
        "md5": hashlib.md5(SAMPLE).hexdigest(),
        "sha1": hashlib.sha1(SAMPLE).hexdigest(),
        "sha256": sha256,
        "sha512": hashlib.sha512(SAMPLE).hexdigest(),
        "crc32": f"{zlib.crc32(SAMPLE):08X}",
        "ssdeep": ssdeep.hash(SAMPLE),
        "yara": [],
    }
    assert report["target"]["category"] == "file"
    assert part(report["target"]["file"], file) == file

    [signature] = report["signatures"]
    [evidence] = signature["marks"]
    assert evidence["ioc"] == "/tmp/dropped.txt"
    judged = {
        "name": "drops",
        "description": "Leaves a file",
        "severity": 3,
        "ttp": ["T1105"],
        "families": ["Fake"],
        "references": ["https://e.example/"],
    }
    assert part(signature, judged) == judged

    behavior = report["behavior"]
    assert [process["process_name"] for process in behavior["generic"]] == ["sample", "sh"]
    assert [process["pid"] for process in behavior["processes"]] == [312, 313]
    assert [process["pid"] for process in behavior["processtree"]] == [312]
    assert behavior["summary"]["command_line"] == ["/tmp/sample", "sh -c id"]
    assert behavior["apistats"]["313"]["connect"] == 1

    network = report["network"]
    assert network["hosts"] == ["192.168.55.1"]
    assert network["domains"] == [{"domain": "fake.example", "ip": ""}]
    assert network["dns"] == [{"request": "fake.example", "type": "A", "answers": []}]
    assert [packet["dport"] for packet in network["udp"]] == [53]
    assert (network["http"], network["tcp"], network["icmp"], network["tls"]) == ([], [], [], [])
    capture = (site.folder(task["id"]) / "dump.pcap").read_bytes()
    assert network["pcap_sha256"] == hashlib.sha256(capture).hexdigest()

    assert [item["size"] for item in report["dropped"]] == [len(scripts.DROPPED)]
    assert report["static"]["script"]["language"] == "shell"
    assert report["strings"] == ["#!/bin/sh", "echo hello"]
    assert [shot["path"] for shot in report["screenshots"]] == ["shots/0001.jpg"]
    assert (report["procmemory"], report["virustotal"]) == ([], {})
    debug = report["debug"]
    assert (debug["errors"], debug["cuckoo"], debug["action"]) == ([], [], [])
    assert debug["log"][-1] == "analyzer: INFO: the sample ended"
    assert report["metadata"]["output"]["pcap"]["basename"] == "dump.pcap"

    # the next report is made with other rules, and nobody has to reload anything for it
    (signatures / "mine.py").write_text(SIGNATURE.replace('"drops"', '"leaves"'))
    rules = site.settings.cwd / "conf" / "yara"
    rules.mkdir(parents=True)
    (rules / "mine.yar").write_text('rule greets { strings: $a = "hello" condition: $a }')
    await site.get(f"/tasks/rereport/{task['id']}")
    await site.until(task["id"], "reported")
    report = await site.get(f"/tasks/report/{task['id']}")
    assert {one["name"] for one in report["signatures"]} == {"leaves", "yara_match"}
    assert [rule["name"] for rule in report["target"]["file"]["yara"]] == ["greets"]


async def test_a_report_without_results_has_what_clients_crash_without(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_run", REAL_WORKER)
    site.add("one")
    await site.start()
    task_id = (await site.post("/tasks/create/url", url="http://e.example/x"))["task_id"]
    await site.until(task_id, "reported")
    report = await site.get(f"/tasks/report/{task_id}")
    assert report["target"] == {"category": "url", "url": "http://e.example/x"}
    assert isinstance(report["info"]["score"], int | float)
    assert isinstance(report["signatures"], list)
    assert isinstance(report["network"], dict)
    assert all(isinstance(error, str) for error in report["debug"]["errors"])
