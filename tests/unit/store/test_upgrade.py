"""A large database of each earlier version becomes one of this, whatever kills the upgrade."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from store_data import machine, url

from cuckoo_api.store import Store, TaskFilter, database
from cuckoo_api.store.schema import HEAD

pytestmark = [pytest.mark.slow, pytest.mark.no_cover]

MIGRATIONS = Path(database.__file__).parent / "migrations"
EARLIER = [f"{number:04}" for number in range(1, int(HEAD))]
TASKS = 100_000
SAMPLES = 5_000
KINDS = 700
"""What tasks ask of a machine: pairs of a machine's name and tags that differ."""
LIMIT = 5.0
"""Seconds of a processor for one upgrade. It takes one; a pass for each kind would take minutes."""

FILL = f"""
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {SAMPLES})
INSERT INTO samples (md5, sha1, sha256, sha512, crc32, file_size, file_type)
SELECT printf('%032x', i), printf('%040x', i), printf('%064x', i), printf('%0128x', i), 'c', i,
    'data' FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {TASKS})
INSERT INTO tasks (category, target, wanted_machine, platform, tags, options, status, added_on,
    completed_on, sample_id, owner, errors, custom)
SELECT 'file', 'sample-' || i || '.exe',
    CASE WHEN i % 7 = 0 THEN 'win' || (i % {KINDS}) ELSE '' END,
    CASE i % 3 WHEN 0 THEN '' WHEN 1 THEN 'windows' ELSE 'linux' END,
    CASE WHEN i % 5 = 0 THEN '["office","t' || (i % {KINDS}) || '"]' ELSE '[]' END,
    '{{"procmemdump":"yes"}}', CASE WHEN i % 1000 = 0 THEN 'pending' ELSE 'reported' END,
    '2026-01-01 00:00:00', CASE WHEN i % 1000 = 0 THEN NULL ELSE '2026-01-02 00:00:00' END,
    i % {SAMPLES} + 1, 'soc', '["it failed at first"]', 'ü' || i
FROM n;
INSERT INTO task_tags (task_id, tag) SELECT id, 'office' FROM tasks WHERE tags <> '[]';
INSERT INTO machines (name, label, manager, ip, platform, resultserver_ip, resultserver_port)
VALUES ('win1', 'win1', 'kvm', '192.0.2.1', 'windows', '192.0.2.254', 2042);
"""

CHILD = textwrap.dedent(
    """
    import os, signal, sqlite3, sys
    from pathlib import Path
    from cuckoo_api.store.upgrade import upgrade

    path, left = Path(sys.argv[1]), int(sys.argv[2])
    real = sqlite3.connect

    def step():
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def connect(*arguments, **options):
        connection = real(*arguments, **options)
        connection.set_progress_handler(step, 10_000)
        return connection

    sqlite3.connect = connect
    upgrade(path, 5)
    print(-left)
    """
)
"""Upgrades, and is killed when the database has worked for so long."""


def at_revision(path: Path, revision: str) -> None:
    """Bring the file to this revision, as the version that had it did."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def columns(path: Path, table: str) -> list[str]:
    connection = sqlite3.connect(path)
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    connection.close()
    return names


def assert_kept(path: Path, before: Path) -> None:
    """Every row that there was is there, and nothing in it has changed."""
    connection = sqlite3.connect(path)
    connection.execute("ATTACH ? AS old", (str(before),))
    for table, count in (("tasks", TASKS), ("samples", SAMPLES), ("machines", 1)):
        names = columns(before, table)
        assert set(names) <= set(columns(path, table))
        new, old = (", ".join(f"{of}.{name}" for name in names) for of in ("new", "old"))
        same = f"SELECT count(*) FROM {table} new JOIN old.{table} old USING (id)"
        [(found,)] = connection.execute(f"{same} WHERE ({new}) IS ({old})").fetchall()
        assert found == count, table
    lost = "SELECT * FROM old.task_tags EXCEPT SELECT * FROM main.task_tags"
    assert connection.execute(lost).fetchall() == []
    connection.close()


def version(path: Path) -> str:
    connection = sqlite3.connect(path)
    [(number,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    connection.close()
    return str(number)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full database of the first version."""
    path = tmp_path_factory.mktemp("first") / "cuckoo.db"
    at_revision(path, EARLIER[0])
    connection = sqlite3.connect(path)
    connection.executescript(FILL)
    connection.close()
    return path


@pytest.fixture(scope="module")
def of_each(first: Path) -> dict[str, Path]:
    """One of each earlier version."""
    made = {EARLIER[0]: first}
    for before, revision in itertools.pairwise(EARLIER):
        path = first.with_name(f"{revision}.db")
        shutil.copy(made[before], path)
        at_revision(path, revision)
        made[revision] = path
    return made


@pytest.mark.parametrize("revision", EARLIER)
async def test_all_that_was_there_is_there_in_bounded_time(
    of_each: dict[str, Path], tmp_path: Path, revision: str
) -> None:
    path, before = tmp_path / "cuckoo.db", of_each[revision]
    shutil.copy(before, path)
    assert version(path) == revision
    begin = time.process_time()
    store = await Store.open(f"sqlite:///{path}")
    try:
        assert time.process_time() - begin < LIMIT
        assert version(path) == HEAD
        assert_kept(path, before)
        await check_use(store)
    finally:
        await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


async def check_use(store: Store) -> None:
    """What waited is claimed by who fits, and new tasks go on after the old."""
    waiting = await store.tasks.page(TaskFilter(status="pending"), limit=None)
    assert len(waiting) == TASKS // 1000
    [other] = await store.machines.sync([machine("other", "windows", ("office", "t300"))])
    fits = [task for task in waiting if not task.machine and task.platform in ("", "windows")]
    assert any(task.tags for task in fits)
    claimed = await store.tasks.claim(other)
    assert claimed is not None
    assert set(claimed.tags) <= {"office", "t300"}
    assert claimed.platform in ("", "windows")
    assert claimed.errors == ["it failed at first"]
    assert claimed.custom == f"ü{claimed.id}"
    assert await store.tasks.submit([url()]) == [TASKS + 1]


def upgrade_killed(path: Path, after: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(after)],
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_kill_in_the_middle_leaves_the_old_one_whole(first: Path, tmp_path: Path) -> None:
    path = tmp_path / "cuckoo.db"
    shutil.copy(first, path)
    whole = upgrade_killed(path, 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps > 10

    shutil.copy(first, path)
    for after in (steps // 2, steps - 1):
        killed = upgrade_killed(path, after)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert version(path) == EARLIER[0]
        assert "demand" not in columns(path, "tasks")
    store = await Store.open(f"sqlite:///{path}")
    try:
        assert version(path) == HEAD
        assert_kept(path, first)
        await check_use(store)
    finally:
        await store.close()


def test_what_a_task_asks_of_a_machine_is_filled_in(of_each: dict[str, Path]) -> None:
    connection = sqlite3.connect(of_each["0002"])
    rows = connection.execute("SELECT wanted_machine, platform, tags, demand FROM tasks")
    for wanted, platform, tags, demand in rows:
        assert json.loads(demand) == [wanted, platform, sorted(json.loads(tags))]
    connection.close()
