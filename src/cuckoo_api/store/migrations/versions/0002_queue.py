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
    tasks = sa.table(
        "tasks", *map(sa.column, ("id", "wanted_machine", "platform", "tags", "demand"))
    )
    connection = op.get_bind()
    kinds = sa.select(tasks.c.wanted_machine, tasks.c.platform, tasks.c.tags).distinct()
    for machine, platform, tags in connection.execute(kinds).all():
        demand = [machine, platform, sorted(set(json.loads(tags)))]
        connection.execute(
            sa.update(tasks)
            .where(
                tasks.c.wanted_machine == machine,
                tasks.c.platform == platform,
                tasks.c.tags == tags,
            )
            .values(demand=json.dumps(demand, ensure_ascii=False))
        )


def downgrade() -> None:
    for name in ("tasks_queue", "tasks_status", "tasks_owner", "tasks_sample_id"):
        op.drop_index(name, "tasks")
    op.create_index("tasks_queue", "tasks", ["status", sa.text("priority DESC"), "id"])
    op.create_index("tasks_owner", "tasks", ["owner"])
    op.create_index("ix_tasks_sample_id", "tasks", ["sample_id"])
    op.drop_column("tasks", "demand")
