"""Alembic's entry: runs on the connection that the store hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from cuckoo_api.store.schema import metadata


def _run() -> None:
    connection: Connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


_run()
