"""How the files of an analysis lie on the host."""

from __future__ import annotations

import stat

import pytest
from fakekit import Site

from cuckoo_api.testing.fake import scripts

pytestmark = pytest.mark.slow


async def test_nothing_that_came_from_outside_can_be_started_or_is_open_to_others(
    site: Site,
) -> None:
    site.add("one", scripts.normal)
    await site.start()
    await site.analyse(b"#!/bin/sh\necho started on the host\n")
    await site.free()
    storage = site.settings.storage
    files = [path for path in storage.rglob("*") if path.is_file() and not path.is_symlink()]
    shown = {str(path.relative_to(storage)) for path in files}
    assert {"analyses/1/reports/report.json", "analyses/1/shots/0001.jpg"} <= shown
    assert any(name.startswith("binaries/") for name in shown)
    assert [path for path in files if path.stat().st_mode & 0o111] == []
    for path in files:
        within = [folder for folder in path.parents if folder.is_relative_to(storage)]
        assert any(not place.stat().st_mode & stat.S_IRWXO for place in (path, *within)), path
