"""The door to SQL: SQLite or PostgreSQL. `open_store` and `migrate` are the way in; the only user of SQLAlchemy."""

from __future__ import annotations

from gateway.store.engine import parsed_url
from gateway.store.only import only_gateway
from gateway.store.schema import is_empty, migrate
from gateway.store.store import Store, open_store
from gateway.store.transaction import Transaction

__all__ = ["Store", "Transaction", "is_empty", "migrate", "only_gateway", "open_store", "parsed_url"]
