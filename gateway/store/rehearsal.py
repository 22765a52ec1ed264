"""A copy of everything that a change of accounts looks at, in an SQLite file of its own: to see what would happen.

The source is read in one transaction and never locked. Secrets stay sealed. Called by store.py.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Table, delete, select

from gateway.store.tables import accounts, free_ranges, nodes, servers, settings
from gateway.store.transaction import Transaction

_TABLES = (settings, nodes, servers, accounts, free_ranges)
_ROWS = 1000  # in memory at once


async def copy(source: Transaction, target: Transaction) -> None:
    """`target` is a new database of this schema."""
    for table in _TABLES:
        await target.run(delete(table))
        async for rows in source.parts(select(table), _ROWS):
            await target.run_many(table.insert(), [_values(table, row) for row in rows])


def _values(table: Table, row: Row[Any]) -> dict[str, Any]:
    return dict(zip(table.columns.keys(), row, strict=True))
