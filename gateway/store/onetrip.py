"""SQLite connections that go to their thread once for a statement.

aiosqlite hands every step of a statement (make a cursor, execute, fetch, close it) to the connection's thread and waits
for each, and waiting is most of what a statement of 20 us costs. Here all of it is one trip. For SQLAlchemy nothing
changes. Called by engine.py.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import aiosqlite

FIRST_ROWS = 500  # come with the execute; few statements have more


async def connect(path: str, lock_seconds: float) -> aiosqlite.Connection:
    connection = _Connection(partial(sqlite3.connect, path, timeout=lock_seconds), FIRST_ROWS)
    connection._thread.daemon = True  # as SQLAlchemy does: a lost connection must not keep the process from ending
    opening = asyncio.ensure_future(connection)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await (await opening).close()  # the thread opens the file whoever waits, and nobody else would close it
        raise


class _Connection(aiosqlite.Connection):
    async def cursor(self) -> _Cursor:  # type: ignore[override]
        return _Cursor(self)

    async def rollback(self) -> None:
        """The pool rolls back each connection that it gets back, also after a commit."""
        if self._conn.in_transaction:
            await super().rollback()


class _Cursor(aiosqlite.Cursor):
    """What SQLAlchemy's adapter uses of one. A cursor is used once."""

    def __init__(self, connection: _Connection) -> None:
        super().__init__(connection, None)  # type: ignore[arg-type]
        self._rows: list[Any] = []
        self._has_more = False

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> _Cursor:
        await self._in_thread(self._begin, sqlite3.Cursor.execute, sql, [] if parameters is None else parameters)
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> _Cursor:
        await self._in_thread(self._begin, sqlite3.Cursor.executemany, sql, parameters)
        return self

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await self._execute(call, *arguments)  # type: ignore[no-untyped-call]

    def _begin(self, method: Any, sql: str, parameters: Any) -> None:
        self._cursor = method(self._conn._conn.cursor(), sql, parameters)
        if self._cursor.description:
            self._rows = self._cursor.fetchmany(FIRST_ROWS)
            self._has_more = len(self._rows) == FIRST_ROWS

    async def fetchone(self) -> Any:
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = FIRST_ROWS if size is None else size
        if len(self._rows) < size and self._has_more:
            more: list[Any] = await self._in_thread(self._cursor.fetchmany, size - len(self._rows))
            self._has_more = len(more) == size - len(self._rows)
            self._rows += more
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    async def fetchall(self) -> list[Any]:
        if self._has_more:
            self._rows += await self._in_thread(self._cursor.fetchall)
            self._has_more = False
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        if self._has_more:  # else SQLite has let go of the statement by itself
            await self._in_thread(self._cursor.close)
