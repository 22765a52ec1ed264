"""The connections: SQLite through aiosqlite, PostgreSQL through asyncpg. Every wait in here is bounded.

Owns: pools, how a transaction begins, what a lost database looks like to the caller. Never knows a table.

A *change* holds its locks until the commit. On SQLite it starts with BEGIN IMMEDIATE on the only writing connection,
so there is one change at a time; on PostgreSQL it locks rows (Transaction.lock and nodes.py). A *read* sees one moment
of the whole database: a WAL snapshot, or REPEATABLE READ.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy.exc
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.errors import ConfigError, DatabaseUnavailable
from gateway.store import onetrip

CONNECT_SECONDS = 10
POOL_SECONDS = 30  # how long a request may wait for a connection (SQLite: for the writers before it)
STATEMENT_SECONDS = 30
LOCK_SECONDS = 10.0
READERS = 4  # SQLite: connections that read beside the one that writes
POOL_SIZE = 10  # PostgreSQL

_UNAVAILABLE = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    asyncpg.PostgresError,  # raised bare while connecting
    OSError,
    TimeoutError,
)
# Classes of SQLSTATE: connection lost, rolled back, out of something, not in that state (lock timeout), by an operator.
_BUSY = ("08", "40", "53", "55", "57")
_TRY_AGAIN = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected


def try_again_helps(error: Exception) -> bool:
    """Two changes were in each other's way, and this one was rolled back as a whole."""
    return _state(error) in _TRY_AGAIN


def translated(error: Exception) -> ConfigError | DatabaseUnavailable | None:
    """What a failure of the database means to people. None = it is a bug of ours."""
    reason = str(getattr(error, "orig", None) or error)
    if type(error) is sqlalchemy.exc.DatabaseError:  # SQLite: "file is not a database", "... is malformed"
        return ConfigError([f"database: {reason}: put it aside and restore your backup"])
    lost = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    if lost or isinstance(error, _UNAVAILABLE) or _state(error).startswith(_BUSY):
        return DatabaseUnavailable(reason)
    return None


def _state(error: Exception) -> str:
    """PostgreSQL's SQLSTATE; "" where there is none."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def parsed_url(text: str) -> URL:
    """Raises ConfigError. The password is never part of a message."""
    try:
        url = make_url(text)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError(["database: must be sqlite:////path/to/file or postgresql://user@host/name"]) from None
    if url.drivername == "sqlite" and url.database and Path(url.database).is_absolute():
        return url.set(drivername="sqlite+aiosqlite")
    if url.drivername in ("postgresql", "postgres") and url.database:
        return url.set(drivername="postgresql+asyncpg")
    raise ConfigError(["database: must be sqlite:////path/to/file or postgresql://user@host/name"])


class Engine:
    """Two ways into one database."""

    def __init__(self, url: URL) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            assert url.database is not None
            _make_private_file(Path(url.database))
            self._writer = _sqlite(url, size=1, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite(url, size=READERS, begin="BEGIN", read_only=True)
        else:
            engine = _postgresql(url)
            self._writer = engine.execution_options(isolation_level="READ COMMITTED")
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[AsyncConnection]:
        async with self._writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self._reader.begin() as connection:
            yield connection

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()


def _make_private_file(path: Path) -> None:
    """The file holds (sealed) secrets: nobody else reads it. SQLite gives its -wal and -shm the same mode."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError([f"database: {path} cannot be opened: {error.strerror}"]) from None
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
    except PermissionError:
        raise ConfigError([f"database: {path} can be read by others and belongs to somebody else"]) from None
    finally:
        os.close(descriptor)


def _sqlite(url: URL, *, size: int, begin: str, read_only: bool = False) -> AsyncEngine:
    path = url.database
    assert path is not None
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,
        async_creator=lambda *_, **__: onetrip.connect(path, LOCK_SECONDS),
    )

    # In WAL mode only FULL survives a power cut; NORMAL may forget the last commits.
    pragmas = ["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"]
    if read_only:
        pragmas.append("query_only = ON")

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Python's sqlite3 begins transactions when it sees fit, and never for a read: we say BEGIN ourselves.
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except BaseException:
            connection.close()  # the pool forgets a connection that failed in here, and its thread would live on
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,
        pool_pre_ping=True,  # the server may have been restarted since
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {
                "application_name": "wirelane-gateway",
                "lock_timeout": f"{LOCK_SECONDS * 1000:.0f}ms",
                "statement_timeout": f"{STATEMENT_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{STATEMENT_SECONDS}s",
            },
        },
    )
