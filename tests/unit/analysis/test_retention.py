"""What is old goes as if it were deleted by hand; what somebody needs stays."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cuckoo_api.analysis import retention as module
from cuckoo_api.analysis.deletion import trim_task
from cuckoo_api.analysis.retention import DAY, Retention, Rule, clean
from cuckoo_api.analysis.service import AnalysisService
from cuckoo_api.artefacts import Artefacts
from cuckoo_api.cli.main import main
from cuckoo_api.model.errors import NotFound, Unavailable
from cuckoo_api.model.sample import NewSample
from cuckoo_api.model.task import NewTask, Status
from cuckoo_api.settings import RetentionSection, Settings
from cuckoo_api.store import Store
from waiting import News

pytestmark = pytest.mark.slow

LATER = time.time() + 40 * DAY


@dataclass
class Site:
    cwd: Path
    store: Store
    artefacts: Artefacts

    async def analysed(self, content: bytes = b"x", status: Status = Status.REPORTED) -> int:
        """A task that has ended, with a folder and its sample."""
        sha256 = hashlib.sha256(content).hexdigest()
        sample = NewSample(
            md5="0" * 32, sha1="0" * 40, sha256=sha256, sha512="0" * 128, crc32="0" * 8,
            ssdeep=None, file_size=len(content), file_type="data",
        )  # fmt: skip
        task = NewTask(category="file", target="a.sh")
        [task_id] = await self.store.tasks.submit([task], sample)
        (self.cwd / "storage" / "binaries" / sha256).write_bytes(content)
        folder = self.artefacts.analysis(task_id)
        await folder.create(b"{}", sha256)
        (folder.path / "memory.dmp").write_bytes(bytes(1000))
        (folder.path / "shots" / "0001.jpg").write_bytes(bytes(50))
        (folder.path / "reports" / "report.json").write_text("{}")
        path = [Status.PENDING, Status.RUNNING, Status.COMPLETED, Status.REPORTED]
        for before, after in itertools.pairwise(path):
            if before is status:
                break
            await self.store.tasks.transition(task_id, before, after)
        return task_id

    async def clean(self, *, dry_run: bool = False, **rule: object) -> list[int]:
        """The ids of what went, forty days later."""
        made = Rule(**{"seconds": 30 * DAY} | rule)  # type: ignore[arg-type]
        gone = clean(self.store, self.artefacts, made, now=LATER, dry_run=dry_run)
        return [removed.task_id async for removed in gone]

    def left(self, task_id: int) -> set[str]:
        """The names in a task's folder that mean something."""
        path = self.artefacts.analysis(task_id).path
        return {each.name for each in path.iterdir()} if path.exists() else set()

    def samples(self) -> int:
        return len(list((self.cwd / "storage" / "binaries").iterdir()))

    def service(self) -> AnalysisService:
        return AnalysisService(
            Settings(cwd=self.cwd), self.store, self.artefacts, on_submitted=lambda: None
        )


@pytest.fixture
async def site(tmp_path: Path, empty_database: Path) -> AsyncIterator[Site]:
    shutil.copy(empty_database, tmp_path / "cuckoo.db")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "cuckoo.conf").write_text("")
    store = await Store.open(f"sqlite:///{tmp_path / 'cuckoo.db'}")
    artefacts = Artefacts(tmp_path / "storage")
    await artefacts.open()
    yield Site(tmp_path, store, artefacts)
    await artefacts.close()
    await store.close()


async def test_what_is_old_goes_with_the_samples_that_nobody_else_has(site: Site) -> None:
    alone = await site.analysed(b"alone")
    shared = await site.analysed(b"shared")
    waiting = await site.analysed(b"shared", Status.PENDING)

    assert await site.clean(seconds=50 * DAY) == []
    assert await site.clean(dry_run=True) == [alone, shared]
    assert site.samples() == 2
    assert await site.clean() == [alone, shared]
    assert [site.left(task_id) for task_id in (alone, shared)] == [set(), set()]
    assert await site.store.tasks.get(alone) is None
    assert site.samples() == 1
    assert await site.store.tasks.get(waiting) is not None


async def test_what_is_in_hand_or_waits_stays_however_old(site: Site) -> None:
    for status in (Status.PENDING, Status.RUNNING, Status.COMPLETED):
        await site.analysed(status=status)
    assert await site.clean() == []
    assert await site.clean(keep_reports=True) == []


async def test_a_rule_may_ask_for_a_state_and_a_size(site: Site) -> None:
    task_id = await site.analysed()
    await site.store.tasks.cancel(await site.analysed(status=Status.PENDING))

    assert await site.clean(statuses=frozenset({Status.FAILED_ANALYSIS})) == []
    assert await site.clean(larger_than=1055) == []
    assert await site.clean(statuses=frozenset({Status.CANCELLED})) == [task_id + 1]
    assert await site.clean(larger_than=1054) == [task_id]


async def test_of_a_trimmed_task_the_report_stays_and_none_is_made_of_the_rest(site: Site) -> None:
    task_id = await site.analysed()
    assert await site.clean(keep_reports=True, larger_than=1051) == []
    assert await site.clean(keep_reports=True, larger_than=1050) == [task_id]
    assert site.left(task_id) == {"reports", "task.json", "binary", "trimmed.txt"}
    assert await site.clean(keep_reports=True) == [], "once is enough"

    service = site.service()
    assert service.folder(task_id).report("json").read_text() == "{}"
    assert not await service.rereport(task_id)
    with pytest.raises(NotFound):
        await service.reboot(task_id)
    assert await site.clean() == [task_id], "and may go later"


async def test_a_task_whose_report_is_made_anew_at_this_moment_is_not_trimmed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await site.analysed()
    before = site.left(task_id)
    begin = type(site.artefacts.analysis(task_id)).begin_trim

    async def begin_too_late(folder: object) -> bool:
        assert await site.service().rereport(task_id)
        return await begin(folder)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.artefacts.analysis(task_id)), "begin_trim", begin_too_late)
    assert not await trim_task(site.store, site.artefacts, task_id)
    assert site.left(task_id) == before


async def test_a_trimming_that_was_broken_off_is_finished_and_no_report_made_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await site.analysed()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await site.clean(keep_reports=True)

    assert site.artefacts.analysis(task_id).is_trimmed
    assert not await site.service().rereport(task_id)
    assert await site.clean(keep_reports=True) == [task_id]
    assert site.left(task_id) == {"reports", "task.json", "binary", "trimmed.txt"}


async def test_the_server_removes_what_its_settings_say_and_rests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied, apply = News(), Retention._apply

    async def counted(retention: Retention, rule: Rule) -> None:
        await apply(retention, rule)
        applied.one_more()

    monkeypatch.setattr(Retention, "_apply", counted)
    old = await site.analysed()
    retention = Retention(RetentionSection(), site.store, site.artefacts, clock=lambda: LATER)
    with capture_logs() as lines:
        retention.open()
        retention.reconfigure(RetentionSection(report_only_days=35))
        await applied.until(lambda: applied.count == 1)
        assert "memory.dmp" not in site.left(old)
        retention.reconfigure(RetentionSection(days=39, report_only_days=35))
        await applied.until(lambda: applied.count == 3)
    await retention.close()
    assert await site.store.tasks.get(old) is None
    assert [line["tasks"] for line in lines if line["event"] == "retention.removed"] == [1, 1]


async def test_a_store_that_fails_is_asked_again_later(
    site: Site, monkeypatch: pytest.MonkeyPatch, writes: News
) -> None:
    task_id = await site.analysed()
    answers = iter([Unavailable("The database is busy")])
    outdated = type(site.store.tasks).outdated

    async def busy(*args: object, **values: object) -> list[int]:
        for answer in answers:
            writes.one_more()
            raise answer
        return await outdated(*args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.store.tasks), "outdated", busy)
    monkeypatch.setattr(module, "PERIOD", 0.01)
    section = RetentionSection(days=30)
    retention = Retention(section, site.store, site.artefacts, clock=lambda: LATER)
    retention.open()

    async def gone() -> bool:
        return await site.store.tasks.get(task_id) is None

    await writes.until(gone)
    await retention.close()


@pytest.mark.usefixtures("_logging_is_put_back")
async def test_the_command(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cuckoo(*words: str) -> int:
        return await asyncio.to_thread(main, ["--cwd", str(site.cwd), "clean", *words])

    await site.analysed()
    assert await cuckoo("--older-than", "30d") == 0
    assert "Removed 0 tasks, 0 bytes." in capsys.readouterr().out
    monkeypatch.setattr(time, "time", lambda: LATER)
    assert await cuckoo("--older-than", "30d", "--dry-run") == 0
    assert "Would remove 1 tasks, 1.0 KiB." in capsys.readouterr().out
    assert await cuckoo("--older-than", "30d", "--keep-reports") == 0
    assert "Removed the files of 1 tasks, 1.0 KiB." in capsys.readouterr().out
    assert await cuckoo("--older-than", "5w", "--status", "reported", "--json") == 0
    gone = json.loads(capsys.readouterr().out)
    assert gone == {"tasks": [1], "bytes": gone["bytes"], "dry_run": False}
    assert site.samples() == 0
    for words in (["--older-than", "soon"], ["--older-than", "1d", "--larger-than", "much"]):
        with pytest.raises(SystemExit):
            await cuckoo(*words)
    capsys.readouterr()
