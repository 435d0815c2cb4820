"""Submissions of several things at once, for the number that their tasks share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "submits",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("added_on", sa.String(19), nullable=False),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("submits")
