"""The first pages that a new user follows, done word for word on a real guest."""

from __future__ import annotations

import json
from pathlib import Path

from serverkit import Namespace, place_guest

from pagekit import Reader

PAGES = (
    "README.md",
    "docs/index.md",
    "docs/api.md",
    "docs/operations.md",
    "docs/commands.md",
    "docs/development.md",
    "plugins/cuckoo-machinery-libvirt/README.md",
    "plugins/cuckoo-machinery-qemu/README.md",
    "plugins/cuckoo-machinery-virtualbox/README.md",
    "plugins/cuckoo-machinery-vsphere/README.md",
)
"""Their commands speak to a server with one analysis, or of installing."""


def test_the_first_analysis_and_the_examples_of_the_api(
    namespace: Namespace, tmp_path: Path
) -> None:
    reader = Reader(tmp_path, inside=namespace.inside())
    place_guest(reader.home / ".cuckoo")
    for name in ("samples.zip", "invoice.doc"):
        (reader.work / name).write_bytes(b"a document")
    with reader:
        reader.follow("docs/tutorials/first-analysis.md")
        for shown in ("Plants a cron job", "updates.example.test", "persistence"):
            assert shown in reader.said
        report = json.loads((reader.work / "report.json").read_text())
        assert report["info"]["score"] > 0
        assert b"<html" in (reader.work / "report.html").read_bytes()
        assert (reader.work / "dump.pcap").stat().st_size > 24
        for page in PAGES:
            reader.follow(page)
    assert namespace.pids() == []
