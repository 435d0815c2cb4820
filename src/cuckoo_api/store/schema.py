"""The tables. ``migrations/`` brings a database to this shape; a test holds the two together.

Lists and mappings that are only ever read with their row (options, errors, the guest) are JSON
text in it, so that a view of a task is one statement.
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0005"
"""The newest migration."""

metadata = sa.MetaData()

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("md5", sa.String(32), nullable=False, index=True),
    sa.Column("sha1", sa.String(40), nullable=False, index=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("sha512", sa.String(128), nullable=False),
    sa.Column("crc32", sa.String(8), nullable=False),
    sa.Column("ssdeep", sa.Text),
    sa.Column("file_size", sa.BigInteger, nullable=False),
    sa.Column("file_type", sa.Text, nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("category", sa.String(16), nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("wanted_machine", sa.Text, nullable=False, server_default=""),
    sa.Column("machine", sa.Text, nullable=False, server_default=""),
    sa.Column("package", sa.Text, nullable=False, server_default=""),
    sa.Column("options", sa.Text, nullable=False, server_default="{}"),
    sa.Column("timeout", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("priority", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("custom", sa.Text, nullable=False, server_default=""),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("platform", sa.Text, nullable=False, server_default=""),
    sa.Column("memory", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("enforce_timeout", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("clock", sa.String(19)),
    sa.Column("tags", sa.Text, nullable=False, server_default="[]"),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("added_on", sa.String(19), nullable=False),
    sa.Column("started_on", sa.String(19)),
    sa.Column("completed_on", sa.String(19)),
    sa.Column("duration", sa.BigInteger, nullable=False, server_default="-1"),
    sa.Column("sample_id", sa.Integer, sa.ForeignKey("samples.id")),
    sa.Column("submit_id", sa.Integer),
    sa.Column("route", sa.Text),
    sa.Column("processing", sa.Text),
    sa.Column("guest", sa.Text, nullable=False, server_default="{}"),
    sa.Column("errors", sa.Text, nullable=False, server_default="[]"),
    sa.Column("demand", sa.Text, nullable=False, server_default=""),
    sa.Column("callback", sa.Text, nullable=False, server_default=""),
    # a deleted task's id is never given to another one: clients keep ids
    sqlite_autoincrement=True,
)
# the queue, by what its tasks ask of a machine
sa.Index("tasks_queue", tasks.c.status, tasks.c.demand, tasks.c.priority.desc(), tasks.c.id)
# lists are in this order, whatever they are filtered by
sa.Index("tasks_listed", tasks.c.completed_on, tasks.c.id)
for _name in ("status", "owner", "sample_id"):
    sa.Index(f"tasks_{_name}", tasks.c[_name], tasks.c.completed_on, tasks.c.id)

submits = sa.Table(
    "submits",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("added_on", sa.String(19), nullable=False),
    # a number is never given twice, as with tasks
    sqlite_autoincrement=True,
)

task_tags = sa.Table(
    "task_tags",
    metadata,
    sa.Column(
        "task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("tag", sa.Text, primary_key=True),
)

machines = sa.Table(
    "machines",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("manager", sa.Text, nullable=False),
    sa.Column("ip", sa.Text, nullable=False),
    sa.Column("platform", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False, server_default="[]"),
    sa.Column("options", sa.Text, nullable=False, server_default="[]"),
    sa.Column("interface", sa.Text),
    sa.Column("snapshot", sa.Text),
    sa.Column("locked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("locked_changed_on", sa.String(19)),
    sa.Column("status", sa.Text),
    sa.Column("status_changed_on", sa.String(19)),
    sa.Column("resultserver_ip", sa.Text, nullable=False),
    sa.Column("resultserver_port", sa.Integer, nullable=False),
    sa.Column("rcparams", sa.Text, nullable=False, server_default="{}"),
    sa.Column("quarantine", sa.Text),
    sa.Column("task_id", sa.Integer),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    # a client asks for what came after the last id that it has seen
    sqlite_autoincrement=True,
)

webhooks = sa.Table("webhooks", metadata, sa.Column("url", sa.Text, primary_key=True))

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "task_id",
        sa.Integer,
        sa.ForeignKey("tasks.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("due", sa.BigInteger, nullable=False),
    # receivers tell by it what they have had already
    sqlite_autoincrement=True,
)
sa.Index("deliveries_due", deliveries.c.due, deliveries.c.id)
