"""Analyses pause before the disk is full, and go on when there is clearly room again."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cuckoo_api.analysis import disk
from cuckoo_api.analysis.disk import DiskRoom

GIB = 1 << 30


def test_a_pause_begins_below_what_is_wanted_and_ends_a_tenth_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = [0]
    changes: list[bool] = []
    room = DiskRoom(Path("/srv"), 10 * GIB, on_change=lambda: changes.append(room.low))
    monkeypatch.setattr(disk, "free_bytes", lambda _: free[0])

    def look(gib: float) -> bool:
        free[0] = int(gib * GIB)
        return room.look()

    with capture_logs() as lines:
        assert [look(gib) for gib in (10, 9.9, 10, 10.9, 11, 10, 9.9)] == [
            True, False, False, False, True, True, False,
        ]  # fmt: skip
    assert changes == [True, False, True]
    assert [line["event"] for line in lines] == ["disk.low", "disk.has_room", "disk.low"]
    free[0] = 10 * GIB
    assert room.problem == (
        "disk: 10240 MiB free under /srv, [cuckoo] freespace asks for 10240, and after a pause "
        "for 11264"
    )
    assert room.event() | {"time": ""} == {
        "low": True, "free": 10 * GIB, "wanted": 10 * GIB, "time": "",
    }  # fmt: skip


def test_nothing_is_wanted_where_the_operator_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    assert DiskRoom(tmp_path, 0).problem == ""
