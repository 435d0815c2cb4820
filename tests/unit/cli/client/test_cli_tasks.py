"""The commands for tasks: what they show, what they ask for, and that no sample commands them."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from pathlib import Path

import pytest
from clikit import Terminal

from cuckoo_api.cli import arguments
from cuckoo_api.cli.main import build_parser
from cuckoo_api.cli.terminal import plain
from cuckoo_api.http.artefacts import ARCHIVES, REPORTS
from cuckoo_api.http.artefacts import COMPRESSIONS as SERVED_COMPRESSIONS
from cuckoo_api.http.routes import FILTERS
from cuckoo_api.model.task import NewTask, Status
from cuckoo_api.settings import Rights
from cuckoo_api.settings.tokens import add_token

pytestmark = pytest.mark.slow

EVIL = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe\r\n[red]x[/red]\x9b31m"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\u202egpj.exe\r\n[red]x[/red]\x9b31m"
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


async def submitted(terminal: Terminal, *targets: str, **values: str) -> None:
    await terminal.store.tasks.submit(
        [NewTask(category="url", target=target, **values) for target in targets]
    )


async def reported(terminal: Terminal, task_id: int, report: object) -> Path:
    """Bring a task to its end, with this report; its folder."""
    states = [Status.PENDING, Status.RUNNING, Status.COMPLETED, Status.REPORTED]
    for source, target in itertools.pairwise(states):
        assert await terminal.store.tasks.transition(task_id, source, target)
    folder = terminal.cwd / f"storage/analyses/{task_id}"
    (folder / "reports").mkdir(parents=True)
    (folder / "reports/report.json").write_text(json.dumps(report))
    return folder


async def test_tasks_are_listed(terminal: Terminal) -> None:
    assert (await terminal.run("list")).out == "There is no such task.\n"
    await submitted(terminal, "http://a/", "http://b/", owner="soc")
    shown = await terminal.run("list")
    assert (shown.code, shown.err) == (0, "")
    for text in ["id", "status", "owner", "1", "2", "pending", "http://a/", "http://b/", "soc"]:
        assert text in shown.out
    assert [task["id"] for task in (await terminal.run("list", "--json")).json] == [1, 2]


async def test_a_list_is_narrowed_as_the_api_does(terminal: Terminal) -> None:
    await submitted(terminal, "http://a/?x=1&y=ä b", owner="soc & co")
    await submitted(terminal, "http://b/", tags=["x", "y"])  # type: ignore[arg-type]
    await submitted(terminal, "http://c/")
    await reported(terminal, 3, {})
    for words, expected in [
        (("--owner", "soc & co"), [1]),
        (("--target", "http://a/?x=1&y=ä b"), [1]),
        (("--tags", "x,y"), [2]),
        (("--status", "reported"), [3]),
        (("--after-id", 1), [2, 3]),
        (("--limit", 1), [1]),
        (("--limit", 2, "--offset", 1), [2, 3]),
        (("--completed-after", "2020-01-01"), [3]),
        (("--completed-after", "2999-01-01 12:00:00"), []),
        (("--completed-after", "0"), [3]),
        (("--category", "file"), []),
    ]:
        shown = await terminal.run("list", "--json", *words)
        assert [task["id"] for task in shown.json] == expected, words
    shown = await terminal.run("list", "--offset", 1)
    assert (shown.code, shown.err) == (1, "cuckoo: --offset needs --limit\n")


def test_every_filter_of_the_api_is_an_option() -> None:
    taken = vars(build_parser().parse_args(["list"]))
    assert set(FILTERS) <= set(taken)
    assert tuple(Status) == arguments.STATUSES
    assert tuple(Rights) == arguments.RIGHTS
    assert (*REPORTS, *ARCHIVES) == arguments.FORMATS
    assert set(arguments.COMPRESSIONS) == set(SERVED_COMPRESSIONS)


async def test_a_task_is_shown(terminal: Terminal) -> None:
    await submitted(terminal, "http://a/", custom="for Bob")
    await terminal.store.tasks.add_error(1, "it went wrong")
    shown = await terminal.run("view", 1)
    lines = [line.split(maxsplit=1) for line in shown.out.splitlines()]
    for pair in [["id", "1"], ["target", "http://a/"], ["custom", "for Bob"]]:
        assert pair in [[word.strip() for word in line] for line in lines]
    assert "it went wrong" in shown.out
    assert (await terminal.run("view", 1, "--json")).json["custom"] == "for Bob"
    shown = await terminal.run("view", 2)
    assert (shown.code, shown.out) == (1, "")
    assert shown.err == "cuckoo: the server refused: Task not found\n"


async def test_tasks_are_cancelled_rescheduled_and_deleted(terminal: Terminal) -> None:
    await submitted(terminal, *["http://a/"] * 3)
    shown = await terminal.run("cancel", 1, 7, 2)
    assert shown.code == 1
    assert shown.out == "Task 1 is cancelled.\nTask 2 is cancelled.\n"
    assert shown.err == "cuckoo: task 7: the server refused: Task not found\n"
    assert (await terminal.run("delete", 2)).out == "Task 2 is deleted.\n"
    shown = await terminal.run("reschedule", "--priority", 3, 1)
    assert (shown.code, shown.out) == (0, "Task 1 is rescheduled as task 4.\n")
    listed = (await terminal.run("list", "--json")).json
    assert {t["id"]: (t["status"], t["priority"]) for t in listed} == {
        1: ("recovered", 1),
        3: ("pending", 1),
        4: ("pending", 3),
    }
    shown = await terminal.run("delete", "--json", 3, 9)
    assert shown.json == [
        {"id": 3, "status": "OK"},
        {"id": 9, "error": "the server refused: Task not found"},
    ]
    assert shown.code == 1


async def test_a_report_and_its_files(terminal: Terminal, tmp_path: Path) -> None:
    await submitted(terminal, "http://a/")
    shown = await terminal.run("report", 1)
    assert (shown.code, shown.out) == (1, "Task 1: pending\n")
    report = {"info": {"id": 1, "score": 7.5}, "network": {"hosts": ["192.0.2.1"]}}
    folder = await reported(terminal, 1, report)
    (folder / "files").mkdir()
    (folder / "files/dropped.bin").write_bytes(b"dropped")
    shown = await terminal.run("report", 1)
    assert shown.code == 0
    assert "Task 1: score 7.5 of 10" in shown.out
    assert "192.0.2.1" in shown.out
    assert (await terminal.run("report", 1, "--json")).json == report
    assert (await terminal.run("report", 1, "--element", "network")).json == report["network"]
    target = tmp_path / "out"
    assert (await terminal.run("report", 1, "-o", target)).code == 0
    assert json.loads(target.read_bytes()) == report
    words = ("--format", "dropped", "--tar", "gz", "-o", target)
    assert (await terminal.run("report", 1, *words)).code == 0
    with tarfile.open(fileobj=io.BytesIO(target.read_bytes()), mode="r:gz") as archive:
        assert "files/dropped.bin" in archive.getnames()


async def test_what_cannot_be_fetched_leaves_no_file(terminal: Terminal, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("mine")
    shown = await terminal.run("report", 5, "--format", "all", "-o", target)
    assert (shown.code, shown.err) == (1, "cuckoo: the server refused: Report not found\n")
    assert target.read_text() == "mine"
    shown = await terminal.run("report", 5, "-o", tmp_path / "nosuch" / "out")
    assert shown.err == f"cuckoo: {tmp_path}/nosuch/out: No such file or directory\n"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "cwd"}


async def test_a_format_that_the_server_does_not_know_is_its_to_refuse(terminal: Terminal) -> None:
    shown = await terminal.run("report", 1, "--format", "csv")
    assert shown.code != 0
    assert "Invalid report format" in shown.err


async def test_an_archive_is_not_shown_on_a_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for form in ["all", "html"]:
        shown = await terminal.run("report", 1, "--format", form)
        assert shown.err.startswith("cuckoo: this would harm the terminal; give --output FILE")


async def test_a_terminal_obeys_no_sample(terminal: Terminal) -> None:
    await submitted(terminal, EVIL, owner=EVIL, custom=EVIL)
    await terminal.store.tasks.add_error(1, EVIL)
    for words in [("list",), ("view", 1), ("list", "--json"), ("view", 1, "--json")]:
        shown = await terminal.run(*words)
        assert not UNSAFE.search(shown.out), words
    assert SHOWN in (await terminal.run("view", 1)).out
    shown = await terminal.run("list", "--status", "pending", "--machine", EVIL)
    assert not UNSAFE.search(shown.out + shown.err)
    await reported(
        terminal,
        1,
        {
            "info": {"id": 1, "score": 1},
            "signatures": [{"name": EVIL, "description": EVIL, "severity": 3, "marks": []}],
            "dropped": [{"filepath": EVIL, "size": 1, "type": EVIL, "sha256": "0"}],
            "network": {"hosts": [EVIL], "dns": [], "http": [{"uri": EVIL, "method": EVIL}]},
            "debug": {"errors": [EVIL]},
        },
    )
    for words in [("report", 1), ("report", 1, "--json"), ("report", 1, "--element", "network")]:
        shown = await terminal.run(*words)
        assert shown.code == 0
        assert not UNSAFE.search(shown.out), words


def test_plain_text_stays_as_it_is() -> None:
    assert plain("Größe 10 € / 你好 [x]") == "Größe 10 € / 你好 [x]"
    assert plain(EVIL) == SHOWN
    assert plain("\ud800") == "\\ud800"


async def test_a_token_is_taken_from_where_it_is_given(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submitted(terminal, "http://a/")
    reader = add_token(terminal.cwd, "reader", rights=Rights.READ)
    monkeypatch.setattr("cuckoo_api.http.access.LOOK", 0.0)
    monkeypatch.setenv("CUCKOO_TOKEN", reader)
    shown = await terminal.run("delete", 1)
    assert shown.err == (
        "cuckoo: task 1: the server refused: This needs a token with the right 'admin'; "
        "'reader' has 'read'\n"
    )
    monkeypatch.setenv("CUCKOO_TOKEN", "wrong")
    assert "Authorization: Bearer <TOKEN>" in (await terminal.run("list")).err
    assert (await terminal.run("list", "--token", reader)).code == 0
    monkeypatch.delenv("CUCKOO_TOKEN")
    assert (await terminal.run("delete", 1)).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("view",),
        ("view", "x"),
        ("view", "-1"),
        ("list", "--status", "nosuch"),
        ("list", "--completed-after", "yesterday"),
        ("list", "--limit", "-1"),
        ("report", "1", "--format", "../x"),
        ("cancel",),
        ("token",),
        ("token", "add", "x", "--rights", "root"),
        ("completion", "csh"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(words)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
