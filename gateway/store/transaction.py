"""One transaction, as the other files of this folder and the use cases pass it on.

Outside this folder it is opaque: it is given to the functions of gateway.store.* and to nothing else.

Order of locks, everywhere, or two changes wait for each other: INSTALLATION, then nodes (ascending id), then NUMBERS,
then rows. On SQLite a change is alone from its first moment (BEGIN IMMEDIATE) and nothing is to be locked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, Row, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store import tables
from gateway.store.seal import Seal

INSTALLATION = "installation"  # the set of servers, and the settings
NUMBERS = "numbers"  # generated names and usernames, and the number of accounts

_LOCK = select(tables.locks.c.name).where(tables.locks.c.name == bindparam("name")).with_for_update()

Insert = postgresql.Insert | sqlite.Insert


@dataclass(frozen=True, slots=True)
class Transaction:
    connection: AsyncConnection
    seal: Seal
    is_sqlite: bool

    async def run(self, statement: Executable, values: Mapping[str, Any] | None = None) -> int:
        """Returns how many rows were touched."""
        result = await self.connection.execute(statement, values)
        return int(result.rowcount)

    async def run_many(self, statement: Executable, values: Sequence[Mapping[str, Any]]) -> None:
        if values:
            await self.connection.execute(statement, values)

    async def one(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Row[Any] | None:
        return (await self.connection.execute(statement, values)).first()

    async def all(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        return (await self.connection.execute(statement, values)).all()

    async def parts(self, statement: Executable, rows: int) -> AsyncIterator[Sequence[Row[Any]]]:
        """As `all`, but never more than so many rows in memory."""
        async with self.connection.stream(statement) as result:
            async for part in result.partitions(rows):
                yield part

    async def lock(self, name: str) -> None:
        if not self.is_sqlite:
            await self.connection.execute(_LOCK, {"name": name})

    def insert(self, table: Table) -> Insert:
        """With ON CONFLICT, which both databases have and SQLAlchemy spells twice."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)
