"""The database file: how it is made, shared, filled up, and what a kill leaves of it."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from store_data import machine, url

from cuckoo_api.model.errors import ConfigError, Unavailable
from cuckoo_api.store import Store, TaskFilter, database
from cuckoo_api.store.schema import HEAD, metadata
from cuckoo_api.store.triggers import TRIGGERS

pytestmark = pytest.mark.slow

MIGRATIONS = Path(database.__file__).parent / "migrations"


def beside_tables(engine: sa.Engine) -> dict[str, str]:
    """Indexes and triggers."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type!='table'")
        return {name: " ".join(sql.split()) for name, sql in rows if sql}


async def test_migrations_lead_to_the_schema(store: Store) -> None:
    engine = sa.create_engine(f"sqlite:///{store.database.path}")
    made = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    metadata.create_all(made)
    with made.connect() as connection:
        for trigger in TRIGGERS:
            connection.exec_driver_sql(trigger)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, metadata) == []
    assert beside_tables(engine) == beside_tables(made)
    engine.dispose()
    made.dispose()


async def test_the_file_is_private_and_durable(store: Store) -> None:
    assert stat.S_IMODE(store.database.path.stat().st_mode) == 0o600
    raw = sqlite3.connect(store.database.path)
    assert raw.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    raw.close()
    for hops in (store.database._writer, store.database._quick, store.database._slow):
        for pragma, value in (("synchronous", 2), ("foreign_keys", 1)):
            rows = await hops._connection.execute_fetchall(f"PRAGMA {pragma}")
            assert list(rows) == [(value,)], pragma


async def test_a_database_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "cuckoo.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for tags, status in (('["b", "a"]', "pending"), ('["a"]', "reported"), ("[]", "pending")):
            connection.exec_driver_sql(
                "INSERT INTO tasks (category, target, platform, tags, status, added_on) "
                "VALUES ('url', 'http://x/', 'windows', ?, ?, '2020-01-01 00:00:00')",
                (tags, status),
            )
    engine.dispose()
    store = await Store.open(f"sqlite:///{path}")
    linux, windows = await store.machines.sync(
        [machine("l"), machine("w", "windows", ("a", "b", "c"))]
    )
    assert await store.tasks.claim(linux) is None
    claimed = []
    while (task := await store.tasks.claim(windows)) is not None:
        claimed.append(task.id)
        await store.machines.unlock("w")
    await store.close()
    assert claimed == [1, 3]


async def test_a_new_database_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    location = f"sqlite:///{tmp_path}/new/cuckoo.db"
    stores = await asyncio.gather(*(Store.open(location) for _ in range(4)))
    for one in stores:
        await one.tasks.submit([url()])
    assert len(await stores[0].tasks.page(TaskFilter(), limit=None)) == 4
    for one in stores:
        await one.close()


async def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cuckoo.db"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE task_tags (mine)")  # the last table that the migration makes
    with pytest.raises(ConfigError, match="task_tags already exists"):
        await Store.open(f"sqlite:///{path}")
    tables = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("task_tags",)]
    raw.execute("DROP TABLE task_tags")
    raw.close()
    store = await Store.open(f"sqlite:///{path}")
    assert await store.tasks.submit([url()]) == [1]
    await store.close()


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cuckoo.db"
    await (await Store.open(f"sqlite:///{path}")).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(ConfigError, match="newer version"):
        await Store.open(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "location", ["", "cuckoo.db", "postgresql://h/d", "sqlite://", "sqlite:///:memory:"]
)
async def test_an_address_that_is_not_served(location: str) -> None:
    with pytest.raises(ConfigError, match="not served"):
        await Store.open(location)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "cuckoo.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(ConfigError, match="not a database"):
        await Store.open(f"sqlite:///{tmp_path}/cuckoo.db")


async def test_another_process_write_is_waited_for(store: Store) -> None:
    other = sqlite3.connect(store.database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    submitted = asyncio.ensure_future(store.tasks.submit([url()]))
    assert await store.tasks.get(1) is None, "readers do not wait"
    assert not submitted.done()
    other.execute("COMMIT")
    other.close()
    assert await submitted == [1]


async def test_a_lock_that_is_never_given_back_is_told(tmp_path: Path) -> None:
    store = await Store.open(f"sqlite:///{tmp_path}/cuckoo.db", timeout=0.05)
    other = sqlite3.connect(store.database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="busy") as caught:
        await store.tasks.submit([url()])
    assert "locked" in caught.value.log
    assert "locked" not in str(caught.value)
    other.execute("ROLLBACK")
    other.close()
    assert await store.tasks.submit([url()]) == [1]
    await store.close()


async def test_a_full_disk_is_told_and_undone(store: Store) -> None:
    await store.tasks.submit([url()])
    writer = store.database._writer._connection
    [(pages,)] = await writer.execute_fetchall("PRAGMA page_count")
    await writer.execute_fetchall(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match=r"disk .* full") as caught:
        await store.tasks.submit([url(custom="x" * 100_000)])
    assert caught.value.status == 503
    await writer.execute_fetchall("PRAGMA max_page_count = 1000000")
    [task_id] = await store.tasks.submit([url()])
    kept = await store.tasks.page(TaskFilter(), limit=None)
    assert [task.id for task in kept] == [1, task_id]


async def test_what_waits_is_written_before_the_store_closes(tmp_path: Path) -> None:
    location = f"sqlite:///{tmp_path}/cuckoo.db"
    store = await Store.open(location)
    writes = [asyncio.ensure_future(store.tasks.submit([url()])) for _ in range(200)]
    await asyncio.sleep(0)
    await store.close()
    ids = {task_id for [task_id] in await asyncio.gather(*writes)}
    with pytest.raises(Unavailable, match="stopping"):
        await store.tasks.submit([url()])
    again = await Store.open(location)
    kept = {task.id for task in await again.tasks.page(TaskFilter(), limit=None)}
    await again.close()
    assert len(ids) == 200
    assert ids == kept


SUBMIT = textwrap.dedent(
    """
    import asyncio, sys
    from cuckoo_api.model.task import NewTask
    from cuckoo_api.store import Store

    async def main():
        store = await Store.open(sys.argv[1])
        async def one():
            while True:
                [i] = await store.tasks.submit([NewTask(category="url", target="http://x/")])
                print(i, flush=True)
        await asyncio.gather(*(one() for _ in range(8)))

    asyncio.run(main())
    """
)


def test_a_process_that_does_not_close_the_store_ends(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from cuckoo_api.store import Store;"
        "store = asyncio.run(Store.open(sys.argv[1])); print('open', flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path}/cuckoo.db"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.stdout == "open\n"


async def test_an_answered_submission_survives_a_kill_at_any_instant(tmp_path: Path) -> None:
    path = tmp_path / "cuckoo.db"
    answered: list[int] = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SUBMIT, f"sqlite:///{path}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        answered += [int(process.stdout.readline()) for _ in range(random.randint(1, 300))]
        process.send_signal(signal.SIGKILL)
        answered += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.stdout.close()
        process.wait()
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    raw.close()
    store = await Store.open(f"sqlite:///{path}")
    kept = {task.id for task in await store.tasks.page(TaskFilter(), limit=None)}
    await store.close()
    assert len(answered) == len(set(answered)) > 1
    assert set(answered) <= kept
