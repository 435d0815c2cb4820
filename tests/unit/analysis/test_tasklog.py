"""An analysis' own log: bounded, plain, and nobody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cuckoo_api.analysis import tasklog
from cuckoo_api.analysis.tasklog import keep_in, record, task_log


def say(event: str, **values: object) -> None:
    record(None, "info", {"timestamp": "T", "level": "info", "event": event, **values})


def test_each_event_is_one_plain_line(tmp_path: Path) -> None:
    with task_log():
        say("begins", machine="one", _record=object())
        keep_in(tmp_path)
        say("ends", task_id=3, reason="it said \x1b[2J\nand \udcff", seconds=2, exc_info=OSError())
        try:
            {}["k"]
        except KeyError:
            say("bug of a library's", exc_info=True)
    say("nobody's")
    assert (tmp_path / "cuckoo.log").read_text() == (
        "T info    begins machine=one\n"
        'T info    ends reason="it said \\u001b[2J\\nand \\\\udcff" seconds=2 exception=OSError\n'
        'T info    "bug of a library\'s" exception=KeyError\n'
    )


def test_what_a_guest_makes_the_host_say_does_not_fill_the_disk(tmp_path: Path) -> None:
    for _ in range(2):  # the limit is the file's, not the writer's
        with task_log():
            keep_in(tmp_path)
            for _ in range(tasklog.MAX_BYTES // tasklog.MAX_VALUE + 100):
                say("refused", reason="x" * 10_000)
    data = (tmp_path / "cuckoo.log").read_bytes()
    assert len(data) <= tasklog.MAX_BYTES + len(tasklog.CUT)
    assert data.count(tasklog.CUT) == 1
    assert data.endswith(tasklog.CUT)


def test_lines_wait_for_the_folder_but_not_forever(tmp_path: Path) -> None:
    with task_log():
        for number in range(tasklog.MAX_WAITING + 50):
            say("early", number=number)
        keep_in(tmp_path)
    assert len((tmp_path / "cuckoo.log").read_text().splitlines()) == tasklog.MAX_WAITING


def test_no_link_is_followed_and_no_folder_no_harm(tmp_path: Path) -> None:
    (tmp_path / "cuckoo.log").symlink_to(tmp_path / "other")
    for folder in (tmp_path, tmp_path / "gone"):
        with task_log():
            keep_in(folder)
            say("lost")
    assert not (tmp_path / "other").exists()


async def test_two_tasks_at_once_have_a_log_each(tmp_path: Path) -> None:
    async def work(name: str) -> None:
        (tmp_path / name).mkdir()
        with task_log():
            keep_in(tmp_path / name)
            await asyncio.gather(*(helper(name) for _ in range(3)))

    async def helper(name: str) -> None:
        await asyncio.sleep(0)
        say("helps", who=name)

    await asyncio.gather(work("a"), work("b"))
    for name in ("a", "b"):
        assert (tmp_path / name / "cuckoo.log").read_text() == f"T info    helps who={name}\n" * 3
