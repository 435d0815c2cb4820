"""Whom to tell of a task's end, and what of it was not told yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TASK_ENDED = """
CREATE TRIGGER tasks_ended AFTER UPDATE OF status ON tasks
WHEN NEW.status IS NOT OLD.status AND NEW.status NOT IN ('pending', 'running', 'completed')
BEGIN
    INSERT INTO deliveries (task_id, status, url, due)
    SELECT NEW.id, NEW.status, url, CAST(strftime('%s', 'now') AS INTEGER) FROM
        (SELECT url FROM webhooks UNION SELECT NEW.callback WHERE NEW.callback <> '');
END
"""


def upgrade() -> None:
    op.add_column("tasks", sa.Column("callback", sa.Text(), nullable=False, server_default=""))
    op.create_table("webhooks", sa.Column("url", sa.Text(), primary_key=True))
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column(
            "task_id", sa.Integer(), sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("due", sa.BigInteger(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("deliveries_due", "deliveries", ["due", "id"])
    op.create_index("ix_deliveries_task_id", "deliveries", ["task_id"])
    op.execute(TASK_ENDED)


def downgrade() -> None:
    op.execute("DROP TRIGGER tasks_ended")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_column("tasks", "callback")
