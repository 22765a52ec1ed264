"""Run by Alembic, which hands us the connection and the transaction that gateway/store/schema.py opened."""

from __future__ import annotations

from alembic import context

from gateway.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
