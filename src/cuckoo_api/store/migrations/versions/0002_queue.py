"""What a task asks of a machine in one column, and indexes that follow the list's order."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("demand", sa.Text(), nullable=False, server_default=""))
    _fill()
    for name in ("tasks_queue", "tasks_owner", "ix_tasks_sample_id"):
        op.drop_index(name, "tasks")
    op.create_index("tasks_queue", "tasks", ["status", "demand", sa.text("priority DESC"), "id"])
    for name in ("status", "owner", "sample_id"):
        op.create_index(f"tasks_{name}", "tasks", [name, "completed_on", "id"])


def _fill() -> None:
    """In one pass, however many kinds of tasks there are."""
    tasks = sa.table("tasks", *map(sa.column, ("wanted_machine", "platform", "tags", "demand")))
    asked = (tasks.c.wanted_machine, tasks.c.platform, tasks.c.tags)
    demands = sa.Table(
        "demands",
        sa.MetaData(),
        *(sa.Column(column.name, sa.Text(), primary_key=True) for column in asked),
        sa.Column("demand", sa.Text(), nullable=False),
        prefixes=["TEMPORARY"],
    )
    connection = op.get_bind()
    kinds = [
        {
            "wanted_machine": machine,
            "platform": platform,
            "tags": tags,
            "demand": json.dumps(
                [machine, platform, sorted(set(json.loads(tags)))], ensure_ascii=False
            ),
        }
        for machine, platform, tags in connection.execute(sa.select(*asked).distinct())
    ]
    if not kinds:
        return
    demands.create(connection)
    connection.execute(sa.insert(demands), kinds)
    fits = sa.and_(*(demands.c[column.name] == column for column in asked))
    demand = sa.select(demands.c.demand).where(fits).scalar_subquery()
    connection.execute(sa.update(tasks).values(demand=demand))
    demands.drop(connection)


def downgrade() -> None:
    for name in ("tasks_queue", "tasks_status", "tasks_owner", "tasks_sample_id"):
        op.drop_index(name, "tasks")
    op.create_index("tasks_queue", "tasks", ["status", sa.text("priority DESC"), "id"])
    op.create_index("tasks_owner", "tasks", ["owner"])
    op.create_index("ix_tasks_sample_id", "tasks", ["sample_id"])
    op.drop_column("tasks", "demand")
