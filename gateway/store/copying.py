"""Copies a database: all of it into another one, or what a change of accounts looks at, to see what would happen.

The source is read in one transaction and never locked. Secrets stay sealed with the same key. Called by store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Table, column, delete, func, literal, select, table

from gateway.errors import ConfigError
from gateway.store.tables import accounts, free_ranges, metadata, nodes, resting_numbers, servers, settings
from gateway.store.transaction import Transaction

REHEARSAL = (settings, nodes, servers, accounts, free_ranges, resting_numbers)
ALL: Sequence[Table] = metadata.sorted_tables  # what a table refers to comes before it
_ROWS = 1000  # in memory at once


async def copy(source: Transaction, target: Transaction, copied: Sequence[Table]) -> dict[str, int]:
    """`target` is a new database of this schema. Returns how many rows of each table are in it now."""
    counts = {}
    for each in reversed(copied):
        await target.run(delete(each))
    for each in copied:
        counts[each.name] = 0
        async for rows in source.parts(select(each), _ROWS):
            await target.run_many(each.insert(), [_values(each, row) for row in rows])
            counts[each.name] += len(rows)
    await _number_on(source, target, copied)
    return counts


async def check_unused(target: Transaction) -> None:
    """Raises ConfigError: nothing of anybody shall be written over."""
    for each in (nodes, servers, accounts):
        if await target.one(select(literal(1)).select_from(each).limit(1)) is not None:
            raise ConfigError([f"database: it is not empty (there are {each.name}): nothing was copied into it"])


async def _number_on(source: Transaction, target: Transaction, copied: Sequence[Table]) -> None:
    """Numbers that the database gives go on after those that were ever given, also of rows that are gone."""
    for each in copied:
        if not each.dialect_options["sqlite"]["autoincrement"]:
            continue
        last = await _last_number(source, each)
        if last and not target.is_sqlite:  # SQLite goes on after the largest by itself
            await target.one(select(func.setval(func.pg_get_serial_sequence(each.name, "id"), last)))


async def _last_number(source: Transaction, each: Table) -> int:
    if source.is_sqlite:
        sequence = table("sqlite_sequence", column("name"), column("seq"))
        row = await source.one(select(sequence.c.seq).where(sequence.c.name == each.name))
    else:
        row = await source.one(select(func.max(each.c.id)))
    return int(row[0] or 0) if row is not None else 0


def _values(table: Table, row: Row[Any]) -> dict[str, Any]:
    return dict(zip(table.columns.keys(), row, strict=True))
